//! What a durable commit costs: so many clients, each of which commits one small change after the other through the queue, the journal on
//! two of three disk nodes, and SQLite; in turn with the local file system doing the same, where each client appends as many bytes to a
//! file of its own and calls fdatasync. `cargo bench --package tandemd --bench commits [-- DIRECTORY]`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tandemd::journal::{Journal, JournalNode, Rules};
use tandemd::meta::sqlite::SqliteStore;
use tandemd::meta::{Meta, Write};
use tandemd::metrics::COUNTERS;
use tandemd::segments::disk::DiskSegments;
use tandemfs::Result;
use tandemfs::clock::SystemClock;
use tandemfs::id::NodeId;
use tokio::time::Instant;

const CLIENTS: [usize; 4] = [1, 4, 16, 64];
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_secs(1);
/// As much as the records of a file that is made.
const BYTES: usize = 600;

#[tokio::main]
async fn main() -> Result<()> {
    let place = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let directory = tempfile::tempdir_in(place.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").to_owned()))?;
    let meta = open(directory.path()).await?;
    let mut figures: BTreeMap<usize, Vec<(f64, f64, Steps)>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for clients in CLIENTS {
            let local = local(directory.path(), clients)?;
            let before = Steps::now();
            let ours = commits(&meta, clients).await?;
            figures.entry(clients).or_default().push((local, ours, before.until_now()));
        }
    }
    println!("clients  local/s  commits/s  ratio (least-most)  changes a commit  append us  apply us");
    for (clients, mut rounds) in figures {
        rounds.sort_by(|one, other| (one.0 / one.1).total_cmp(&(other.0 / other.1)));
        let ratio = |at: usize| rounds[at].0 / rounds[at].1;
        let (local, ours, steps) = &rounds[ROUNDS / 2];
        let each = |sum: u64| sum as f64 / steps.commits.max(1) as f64;
        println!(
            "{clients:7}  {local:7.0}  {ours:9.0}  {:5.2} ({:.2}-{:.2})     {:16.1}  {:9.0}  {:8.0}",
            ratio(ROUNDS / 2),
            ratio(0),
            ratio(ROUNDS - 1),
            ours * TIME.as_secs_f64() / steps.commits.max(1) as f64,
            each(steps.append_us),
            each(steps.apply_us),
        );
    }
    Ok(())
}

/// What commits have taken so far.
#[derive(Clone, Copy)]
struct Steps {
    commits: u64,
    append_us: u64,
    apply_us: u64,
}

impl Steps {
    fn now() -> Self {
        Self {
            commits: COUNTERS.commits.get(),
            append_us: COUNTERS.commit_append_us.get(),
            apply_us: COUNTERS.commit_apply_us.get(),
        }
    }

    fn until_now(self) -> Self {
        let now = Self::now();
        Self {
            commits: now.commits - self.commits,
            append_us: now.append_us - self.append_us,
            apply_us: now.apply_us - self.apply_us,
        }
    }
}

async fn open(directory: &Path) -> Result<Meta> {
    let node = |number: u32| {
        let store = DiskSegments::open(directory.join(format!("node-{number}")), NodeId(number))?;
        Ok(JournalNode { id: NodeId(number), zone: number.to_string(), store: Arc::new(store) })
    };
    let nodes = (1..=3).map(node).collect::<Result<Vec<_>>>()?;
    let rules = Rules { copies: 2, min_copies: 1, snapshot_bytes: u64::MAX, keep_ms: 0, new_journal: 1 };
    let engine = Arc::new(SqliteStore::open(directory.join("meta.db"))?);
    Meta::open(Arc::new(Journal::open(engine, nodes, rules, Arc::new(SystemClock)).await?)).await
}

/// Commits a second by so many clients.
async fn commits(meta: &Meta, clients: usize) -> Result<f64> {
    let until = Instant::now() + TIME;
    let client = async |number: usize| {
        let mut count = 0_u64;
        while Instant::now() < until {
            let key = format!("v{number:04}{count:012}").into_bytes();
            meta.commit(Vec::new(), vec![Write { key, value: Some(vec![7; BYTES]) }]).await?;
            count += 1;
        }
        Ok(count)
    };
    let counts: Result<Vec<u64>> =
        futures::future::join_all((0..clients).map(client)).await.into_iter().collect();
    Ok(counts?.iter().sum::<u64>() as f64 / TIME.as_secs_f64())
}

/// Synced appends a second by so many threads.
fn local(directory: &Path, clients: usize) -> Result<f64> {
    let until = Instant::now() + TIME;
    let threads: Vec<_> = (0..clients)
        .map(|number| {
            let path = directory.join(format!("local-{number}"));
            std::thread::spawn(move || -> std::io::Result<u64> {
                let mut file = OpenOptions::new().create(true).append(true).open(path)?;
                let mut count = 0;
                while Instant::now() < until {
                    file.write_all(&[7; BYTES])?;
                    file.sync_data()?;
                    count += 1;
                }
                Ok(count)
            })
        })
        .collect();
    let mut count = 0;
    for thread in threads {
        count += thread.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread")))?;
    }
    Ok(count as f64 / TIME.as_secs_f64())
}
