//! The parts of a daemon, put together.
