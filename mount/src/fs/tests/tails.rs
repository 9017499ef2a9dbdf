//! Files that grow in small steps, each of which is synced.

use std::sync::Arc;

use proptest::prelude::*;
use tandemfs::id::Ino;
use tandemfs::tree::{CHUNK_SIZE, Key, Record};

use super::fake::Daemon;
use super::{ROOT, content, mount, mount_with};
use crate::fs::data::How;
use crate::fs::{Fs, Options, Set};

async fn leased(daemon: &Arc<Daemon>) -> Arc<Fs> {
    mount_with(daemon, Options { lease: true, ..Options::default() }).await.0
}

fn pieces(daemon: &Daemon, ino: Ino) -> usize {
    match daemon.record(&Key::Chunk(ino, 0)) {
        Some(Record::Chunk(chunk)) => chunk.0.len(),
        _ => 0,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_appended_in_small_steps_lies_in_few_pieces() {
    for lease in [false, true] {
        let daemon = Arc::new(Daemon::default());
        let fs = if lease { leased(&daemon).await } else { mount(&daemon).await };
        let (stat, handle) = fs.create(ROOT, Ino::ROOT, b"log", 0o644.into(), 0).await.unwrap();
        for line in 0..320_u64 {
            fs.write(handle, line * 128, &[line as u8; 128], How::default()).await.unwrap();
            fs.fsync(handle).await.unwrap();
        }
        let ino = stat.inode.ino;
        assert_eq!(pieces(&daemon, ino), 320 * 128 / 4096);
        let expected: Vec<u8> = (0..320_u64).flat_map(|line| [line as u8; 128]).collect();
        assert_eq!(content(&fs, ino).await, expected);
        let other = mount(&daemon).await;
        assert_eq!(content(&other, ino).await, expected);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Write(u64, usize),
    Truncate(u64),
    Punch(u64, u64),
    Copy(u64, u64, u64),
    Sync,
    /// Another mount writes.
    Elsewhere(u64, usize),
}

fn step() -> impl Strategy<Value = Step> {
    // Also around the place where one chunk ends and the next begins.
    let at = || prop_oneof![4 => 0..3000_u64, 1 => CHUNK_SIZE - 600..CHUNK_SIZE + 600];
    prop_oneof![
        6 => (1..400_usize).prop_map(Step::Append),
        1 => (at(), 1..400_usize).prop_map(|(at, length)| Step::Write(at, length)),
        1 => at().prop_map(Step::Truncate),
        1 => (at(), 1..800_u64).prop_map(|(at, length)| Step::Punch(at, length)),
        1 => (at(), at(), 1..800_u64).prop_map(|(from, to, length)| Step::Copy(from, to, length)),
        6 => Just(Step::Sync),
        1 => (at(), 1..200_usize).prop_map(|(at, length)| Step::Elsewhere(at, length)),
    ]
}

fn lay(model: &mut Vec<u8>, at: u64, data: &[u8]) {
    let end = at as usize + data.len();
    model.resize(model.len().max(end), 0);
    model[at as usize..end].copy_from_slice(data);
}

async fn follow(steps: Vec<Step>, lease: bool) {
    let daemon = Arc::new(Daemon::default());
    let fs = if lease { leased(&daemon).await } else { mount(&daemon).await };
    let (stat, handle) = fs.create(ROOT, Ino::ROOT, b"f", 0o644.into(), libc::O_RDWR).await.unwrap();
    let ino = stat.inode.ino;
    let mut model: Vec<u8> = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        let fill = |length| vec![number as u8 + 1; length];
        match step {
            Step::Append(length) => {
                let at = model.len() as u64;
                fs.write(handle, at, &fill(length), How::default()).await.unwrap();
                lay(&mut model, at, &fill(length));
            }
            Step::Write(at, length) => {
                fs.write(handle, at, &fill(length), How::default()).await.unwrap();
                lay(&mut model, at, &fill(length));
            }
            Step::Truncate(size) => {
                fs.setattr(ROOT, ino, Set { size: Some(size), ..Set::default() }).await.unwrap();
                model.resize(size as usize, 0);
            }
            Step::Punch(at, length) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                fs.allocate(ROOT, handle, at, length, mode).await.unwrap();
                let size = model.len();
                model[(at as usize).min(size)..((at + length) as usize).min(size)].fill(0);
            }
            Step::Copy(from, to, length) => {
                let copied = fs.copy_range(ROOT, (handle, from), (handle, to), length).await;
                // Ranges that overlap are refused.
                if let Ok(copied @ 1..) = copied {
                    let from = (from as usize).min(model.len());
                    let data = model[from..from + copied as usize].to_vec();
                    lay(&mut model, to, &data);
                }
            }
            Step::Sync => fs.fsync(handle).await.unwrap(),
            Step::Elsewhere(at, length) => {
                let other = mount(&daemon).await;
                let theirs = other.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
                other.write(theirs, at, &fill(length), How::default()).await.unwrap();
                other.fsync(theirs).await.unwrap();
                other.release(theirs).await;
                other.stop().await.unwrap();
                lay(&mut model, at, &fill(length));
            }
        }
        // A long one takes long to compare.
        if model.len() < 10_000 {
            assert!(content(&fs, ino).await == model);
        }
    }
    fs.fsync(handle).await.unwrap();
    let other = mount(&daemon).await;
    assert!(content(&other, ino).await == model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_file_that_grows_in_small_steps_is_what_was_written(
        steps in proptest::collection::vec(step(), 1..40),
        lease: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(follow(steps, lease));
    }
}
