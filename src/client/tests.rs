//! The client against small servers of its own.
