//! What is left in logs, whole and damaged.

use proptest::prelude::*;
use tandemfs::clock::Time;
use tandemfs::tree::XattrMode;
use tempfile::TempDir;

use super::left::read;
use super::*;

const KEY: VolumeKey = VolumeKey([7; 32]);
const SESSION: SessionId = SessionId(9);

fn block(data: Vec<u8>) -> Block {
    Block { id: BlockId::of(&KEY, &data), data: data.into() }
}

fn queued(number: u64) -> Queued {
    let data = vec![number as u8; number as usize % 50];
    let mutation = Mutation::SetXattr {
        ino: Ino(number),
        name: b"user.x".to_vec(),
        value: data.clone(),
        mode: XattrMode::Set,
        by: tandemfs::tree::Credentials::default(),
        time: Time::default(),
    };
    let blocks = vec![block(data)];
    // Every third has a block of its own, and one that others have as well.
    let large = if number.is_multiple_of(3) {
        vec![block(vec![number as u8; 90]), block(vec![7; 70])]
    } else {
        Vec::new()
    };
    Queued { number, mutations: vec![mutation], blocks, large, held: vec![Ino(number)] }
}

/// What one mount leaves that has added ten changes, sent five, and been told of three.
fn left_by(directory: &Path) -> Vec<u8> {
    let mut log = Log::create(directory, &KEY).unwrap();
    log.begin(SESSION, 40);
    (1..=5).for_each(|number| log.change(&queued(number)));
    log.sent(41, 3);
    log.done(3, None::<std::iter::Empty<_>>);
    log.sent(42, 5);
    (6..=10).for_each(|number| log.change(&queued(number)));
    fs::read(&log.path).unwrap()
}

#[test]
fn what_is_not_done_is_left() {
    let directory = TempDir::new().unwrap();
    left_by(directory.path());
    let mut found = orphaned(directory.path(), &KEY).unwrap();
    let left =
        Left { session: SESSION, sequence: 42, sent: Some(5), changes: (4..=10).map(queued).collect() };
    assert_eq!(found[0].left, Some(left));
    assert!(orphaned(directory.path(), &KEY).unwrap().is_empty(), "it is taken");
    assert!(orphaned(directory.path(), &VolumeKey([8; 32])).unwrap().is_empty(), "it is another volume's");
    found.remove(0).remove();
    assert!(orphaned(directory.path(), &KEY).unwrap().is_empty());
}

#[test]
fn a_long_log_is_written_anew() {
    let directory = TempDir::new().unwrap();
    let mut log = Log::create(directory.path(), &KEY).unwrap();
    log.begin(SESSION, 0);
    let large = |number| Queued { large: vec![block(vec![number as u8; 1 << 20])], ..queued(number) };
    for number in 1..=40 {
        log.change(&large(number));
        log.sent(number, number);
        // The last one always waits.
        let last = large(number);
        log.done(number - 1, Some(std::iter::once(&last)));
        assert!(log.length <= TOO_LONG + (2 << 20), "{} bytes", log.length);
    }
    let bytes = fs::read(&log.path).unwrap().into();
    let left = read(&KEY, &bytes).unwrap();
    assert_eq!((left.sequence, left.changes), (40, vec![large(40)]));
    log.done(40, Some(std::iter::empty()));
    assert_eq!(read(&KEY, &fs::read(&log.path).unwrap().into()).unwrap().changes, []);
    assert!(fs::metadata(&log.path).unwrap().len() < 100);
    assert!(orphaned(directory.path(), &KEY).unwrap().is_empty(), "it is in use");
}

proptest! {
    #[test]
    fn of_a_damaged_log_what_comes_before_counts(at in 0_usize..5000, to: u8, cut: bool) {
        let directory = TempDir::new().unwrap();
        let mut bytes = left_by(directory.path());
        let whole = read(&KEY, &bytes.clone().into()).unwrap();
        let at = at % bytes.len();
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = to;
        }
        if let Some(left) = read(&KEY, &bytes.into()) {
            for change in &left.changes {
                prop_assert_eq!(change, &queued(change.number));
            }
            // From the first on that was not done by then, without a gap.
            let first = left.changes.first().map_or(11, |change| change.number);
            prop_assert!(first <= 4 || left.changes.is_empty() || left == whole);
            let numbers: Vec<u64> = left.changes.iter().map(|change| change.number).collect();
            prop_assert_eq!(numbers, (first..first + left.changes.len() as u64).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_same_data_is_in_a_log_once() {
    let directory = TempDir::new().unwrap();
    let mut log = Log::create(directory.path(), &KEY).unwrap();
    log.begin(SESSION, 0);
    let large = |number| Queued { large: vec![block(vec![5; 1 << 20])], ..queued(number) };
    (1..=5).for_each(|number| log.change(&large(number)));
    assert!(log.length < 2 << 20, "{} bytes", log.length);
    log.done(1, None::<std::iter::Empty<_>>);
    let left = read(&KEY, &fs::read(&log.path).unwrap().into()).unwrap();
    assert_eq!(left.changes, (2..=5).map(large).collect::<Vec<_>>());
    // Begun anew it has nothing.
    log.begin(SESSION, 9);
    log.change(&large(6));
    let left = read(&KEY, &fs::read(&log.path).unwrap().into()).unwrap();
    assert_eq!(left.changes, [large(6)]);
}

/// A version before this one has left it.
#[test]
fn a_change_without_a_list_of_large_blocks_is_read() {
    let Queued { number, mutations, blocks, held, .. } = queued(4);
    let frames = [
        frame(&KEY, b'B', &(SESSION, 3_u64)).unwrap(),
        frame(&KEY, b'C', &(number, mutations, blocks, held)).unwrap(),
    ];
    assert_eq!(read(&KEY, &frames.concat().into()).unwrap().changes, [queued(4)]);
}
