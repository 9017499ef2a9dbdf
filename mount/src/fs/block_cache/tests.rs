//! Time stands still while a read of the disk is under way, however slow the machine is (`start_paused`).

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::SystemTime;

use proptest::prelude::*;
use rustix::fs::{FileType, Mode, mknodat};
use tempfile::TempDir;

use super::*;

const KEY: VolumeKey = VolumeKey([7; 32]);
const MEMORY: usize = 96 << 20;
const NONE: [u32; 0] = [];
/// Ten blocks of [`data`] in each of eight segments.
const SHAPE: Shape = Shape { segment_bytes: 10_500, segments: 8, entries: 1600 };

fn data(number: u32) -> Bytes {
    number.to_le_bytes().repeat(250).into()
}

fn id(number: u32) -> BlockId {
    BlockId::of(&KEY, &data(number))
}

fn open_as(directory: &Path, shape: Shape) -> Arc<BlockCache> {
    let cache = BlockCache::with_shape(directory, &KEY, shape, MEMORY).unwrap();
    cache.settle();
    cache
}

fn open(directory: &TempDir) -> Arc<BlockCache> {
    open_as(directory.path(), SHAPE)
}

fn put(cache: &BlockCache, number: u32) {
    cache.put(id(number), data(number));
    cache.settle();
}

async fn get(cache: &BlockCache, number: u32) -> bool {
    let found = cache.get(&KEY, id(number)).await;
    assert!(found.as_ref().is_none_or(|found| *found == data(number)), "block {number} is another one");
    found.is_some()
}

/// Which of the blocks are there.
async fn found(cache: &BlockCache, numbers: std::ops::Range<u32>) -> Vec<u32> {
    let mut found = Vec::new();
    for number in numbers {
        if get(cache, number).await {
            found.push(number);
        }
    }
    found
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let of_volume = directories::of_volume(directory, &KEY);
    let mut found: Vec<_> = directories::segments(&of_volume).unwrap();
    found.sort_unstable();
    found.into_iter().map(|(number, _)| segment::path(&of_volume, number)).collect()
}

fn bytes_in(directory: &Path) -> u64 {
    files(directory).iter().map(|path| fs::metadata(path).unwrap().len()).sum()
}

#[tokio::test(start_paused = true)]
async fn what_was_put_in_is_there_and_is_kept() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    assert!(!get(&cache, 1).await);
    for number in 0..25 {
        put(&cache, number);
    }
    assert_eq!(found(&cache, 0..26).await, (0..25).collect::<Vec<_>>());
    assert!(cache.get(&VolumeKey([8; 32]), id(3)).await.is_none(), "it is no block of another volume");
    let (before, segments) = (bytes_in(directory.path()), files(directory.path()).len());
    put(&cache, 24);
    assert_eq!(bytes_in(directory.path()), before, "it is not written twice");
    cache.close().await;
    let cache = open(&directory);
    put(&cache, 25);
    assert_eq!(found(&cache, 0..40).await, (0..26).collect::<Vec<_>>());
    assert_eq!(files(directory.path()).len(), segments, "it goes on where it was");
    for path in files(directory.path()) {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_and_the_shortest_block_are_kept() {
    let directory = TempDir::new().unwrap();
    let shape = Shape::of(32 << 20, MEMORY / INDEX_SHARE).unwrap();
    assert!(shape.bytes() <= 32 << 20);
    let cache = open_as(directory.path(), shape);
    for length in [0, 1, BLOCK_SIZE_MAX, BLOCK_SIZE_MAX + 1] {
        let data = Bytes::from(vec![5; length]);
        let id = BlockId::of(&KEY, &data);
        cache.put(id, data.clone());
        cache.settle();
        let is_kept = (1..=BLOCK_SIZE_MAX).contains(&length);
        assert_eq!(cache.get(&KEY, id).await, is_kept.then_some(data), "{length} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_cached_is_bounded_and_what_is_used_stays() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    for number in 0..400 {
        put(&cache, number);
        // One is used all the time, so it moves on.
        assert!(get(&cache, 0).await, "before {number}");
        cache.settle();
        assert!(bytes_in(directory.path()) <= SHAPE.bytes(), "after {number}");
    }
    assert_eq!(found(&cache, 1..300).await, NONE, "what nobody uses goes");
    assert!(get(&cache, 399).await && get(&cache, 350).await);
}

#[tokio::test(start_paused = true)]
async fn many_small_blocks_stay_within_the_memory() {
    let directory = TempDir::new().unwrap();
    let shape = Shape { segment_bytes: 1 << 20, segments: 8, entries: 64 };
    let cache = open_as(directory.path(), shape);
    for number in 0..300 {
        put(&cache, number);
        assert!(cache.shared.index().free_entries() < shape.entries);
    }
    let kept = found(&cache, 0..300).await;
    assert!((40..=64).contains(&kept.len()) && kept.contains(&299), "{kept:?}");
    cache.close().await;
    let cache = open_as(directory.path(), Shape { entries: 16, ..shape });
    let kept = found(&cache, 0..300).await;
    assert!((4..=16).contains(&kept.len()) && kept.contains(&299), "{kept:?}");
}

#[tokio::test(start_paused = true)]
async fn another_size_counts_from_the_next_mount_on() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    for number in 0..70 {
        put(&cache, number);
    }
    cache.close().await;
    let small = Shape { segment_bytes: 6000, segments: 4, entries: 1600 };
    let cache = open_as(directory.path(), small);
    assert!(bytes_in(directory.path()) <= small.bytes());
    assert!(get(&cache, 69).await && !get(&cache, 0).await, "the newest stay");
    for number in 100..150 {
        put(&cache, number);
        assert!(bytes_in(directory.path()) <= small.bytes());
    }
    assert!(get(&cache, 149).await);
    cache.close().await;
    let cache = open(&directory);
    assert!(get(&cache, 149).await);
    cache.close().await;
    let of_volume = directories::of_volume(directory.path(), &KEY);
    directories::discard(directory.path(), &KEY).unwrap();
    assert!(!of_volume.exists());
    directories::discard(directory.path(), &KEY).unwrap();
    assert!(BlockCache::start(directory.path(), &KEY, 0, MEMORY).is_none());
    assert!(!of_volume.exists());
}

#[tokio::test(start_paused = true)]
async fn one_mount_at_a_time_uses_it() {
    let directory = TempDir::new().unwrap();
    let one = open(&directory);
    put(&one, 1);
    let two = open(&directory);
    put(&two, 2);
    assert_eq!(found(&two, 0..3).await, NONE);
    directories::discard(directory.path(), &KEY).unwrap();
    assert_eq!(found(&one, 0..3).await, [1], "what is in use is not removed");
    one.close().await;
    assert_eq!(found(&open(&directory), 0..3).await, [1]);
}

#[tokio::test(start_paused = true)]
async fn caches_that_nobody_uses_are_bounded_together() {
    let directory = TempDir::new().unwrap();
    let mut volumes = Vec::new();
    for number in 1..=4 {
        let key = VolumeKey([number; 32]);
        let cache = BlockCache::with_shape(directory.path(), &key, SHAPE, MEMORY).unwrap();
        // 30 kB of the 84 kB that are allowed together.
        for number in 0..30 {
            cache.put(BlockId::of(&key, &data(number)), data(number));
        }
        cache.settle();
        let of_volume = directories::of_volume(directory.path(), &key);
        if number != 2 {
            cache.close().await;
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(number));
            File::open(of_volume.join("lock")).unwrap().set_modified(used).unwrap();
        }
        volumes.push((of_volume, cache));
    }
    fs::write(volumes[0].0.join("other"), "somebody's").unwrap();
    fs::create_dir(volumes[0].0.parent().unwrap().join("others")).unwrap();
    let _own = open(&directory);
    let there: Vec<bool> = volumes.iter().map(|(path, _)| path.join("lock").exists()).collect();
    assert_eq!(
        there,
        [false, true, true, true],
        "the first was used before the others, the second is in use"
    );
    assert_eq!(fs::read_dir(&volumes[0].0).unwrap().count(), 1, "what is none of ours is left");
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_cannot_be_written_caches_nothing() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let cache = open_as(&file, SHAPE);
    put(&cache, 1);
    assert!(!get(&cache, 1).await);
    cache.close().await;
    // What lies there already is no segment.
    let of_volume = directories::of_volume(directory.path(), &KEY);
    fs::create_dir_all(segment::path(&of_volume, 0)).unwrap();
    fs::write(of_volume.join("ffffffff.segment"), "odd").unwrap();
    fs::write(of_volume.join("+1.segment"), "odd").unwrap();
    let cache = open(&directory);
    put(&cache, 1);
    assert!(!get(&cache, 1).await, "it rests after the failure");
    cache.close().await;
    assert!(of_volume.join("+1.segment").exists() && !of_volume.join("ffffffff.segment").exists());
}

#[tokio::test(start_paused = true)]
async fn segments_that_are_gone_are_not_missed() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    for number in 0..30 {
        put(&cache, number);
    }
    for path in files(directory.path()) {
        fs::remove_file(path).unwrap();
    }
    assert_eq!(found(&cache, 0..30).await, NONE);
    for number in 0..30 {
        put(&cache, number);
    }
    assert!(get(&cache, 29).await);
}

/// A pipe in the place of a segment: who opens it waits until somebody else does.
#[tokio::test]
async fn a_disk_that_hangs_is_waited_for_once_and_asked_again_when_it_is_back() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    for number in 0..15 {
        put(&cache, number);
    }
    let first = files(directory.path()).remove(0);
    let moved = first.with_extension("moved");
    fs::rename(&first, &moved).unwrap();
    mknodat(rustix::fs::CWD, &first, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let start = Instant::now();
    assert!(!get(&cache, 3).await);
    assert!(start.elapsed() >= READ_TIMEOUT);
    let start = Instant::now();
    assert_eq!(found(&cache, 0..15).await, NONE, "nothing is read while one read hangs");
    assert!(start.elapsed() < READ_TIMEOUT);
    fs::rename(&first, moved.with_extension("pipe")).unwrap();
    fs::rename(&moved, &first).unwrap();
    drop(File::options().write(true).open(moved.with_extension("pipe")).unwrap());
    while cache.shared.late.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(found(&cache, 0..15).await, (0..15).filter(|number| *number != 3).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_damaged_is_not_there(at in 0_usize..32_000, bit in 0_u8..8, cut: bool, open_before: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let _entered = runtime.enter();
        let directory = TempDir::new().unwrap();
        let mut cache = open(&directory);
        for number in 0..30 {
            put(&cache, number);
        }
        if !open_before {
            runtime.block_on(cache.close());
        }
        let mut at = at as u64;
        for path in files(directory.path()) {
            let length = fs::metadata(&path).unwrap().len();
            if at < length {
                let file = File::options().read(true).write(true).open(path).unwrap();
                if cut {
                    file.set_len(at).unwrap();
                } else {
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, at).unwrap();
                    file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
                }
                break;
            }
            at -= length;
        }
        if !open_before {
            cache = open(&directory);
        }
        // Each that is there is right.
        let kept = runtime.block_on(found(&cache, 0..30)).len();
        prop_assert!(kept >= 20, "only {} are left", kept);
        for number in 0..35 {
            put(&cache, number);
        }
        prop_assert_eq!(runtime.block_on(found(&cache, 0..35)).len(), 35);
        runtime.block_on(cache.close());
    }
}
