//! Tests of the whole system: real processes, real mounts, real failures. They need root and /dev/fuse; a machine without
//! them fails the tests, it does not skip them.
#![allow(missing_docs, unreachable_pub)]

mod cluster;
mod link;
mod local_socket;
mod shell;

mod audit;
mod browser;
mod commits;
mod compaction;
mod crash;
mod cut_off;
mod damage;
mod disk_full;
mod documents;
mod failure;
mod fsck;
mod histories;
mod journal;
mod large_directory;
mod lease;
mod locks;
mod logins;
mod metrics;
mod million_files;
mod mount_command;
mod mount_kills;
mod names;
mod posix;
mod power;
mod races;
mod rate;
mod rest;
mod revocation;
mod seal;
mod short_circuit;
mod start;
mod systemd;
mod tls;
mod tools;
mod two_mounts;
mod volumes;
