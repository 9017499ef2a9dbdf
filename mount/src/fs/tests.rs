//! Tests of the file system against an in-memory daemon.
