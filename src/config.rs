//! Parsing of settings.
