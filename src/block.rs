//! Blocks and the object format.
