//! Passwords: the rules for new ones, and their hashes (Argon2id, RFC 9106).

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use argon2::password_hash::phc::{Output, ParamsString, Salt};
use argon2::{Algorithm, Argon2, Block, Params, PasswordHash, Version, password_hash};
use tandemfs::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::random::random;

/// The longest password, in bytes. Longer ones are refused, not cut.
const BYTES_MAX: usize = 1024;
/// The shortest password, in characters.
const CHARACTERS_MIN: usize = 8;
/// Tries that wait for each place at work.
const QUEUE_PER_PLACE: usize = 32;
/// The longest wait for a place.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Memory in KiB, passes and lanes: the least that OWASP's cheat sheet asks of Argon2id with two passes.
const COST: (u32, u32, u32) = (19_456, 2, 1);

/// Passwords that are tried first by everybody who guesses: words, and words with the usual ends.
static COMMON: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let ends =
        ["", "1", "12", "123", "1234", "12345", "123456", "!", "1!", "123!", "01", "2024", "2025", "2026"];
    let mut common = BTreeSet::new();
    for word in include_str!("common.txt").split_whitespace() {
        common.insert(word.chars().rev().collect());
        for end in ends {
            common.insert(format!("{word}{end}"));
        }
        common.insert(format!("{word}{word}"));
    }
    common
});

/// Checks a password that somebody wants to have: at least 8 characters, at most 1024 bytes, not a common one, not the user's
/// name. Nothing is asked about kinds of characters (ASVS 5.0, 6.2.5).
///
/// # Errors
/// `Invalid`.
pub(super) fn check_new(username: &str, password: &str) -> Result<()> {
    check_length(password)?;
    if password.chars().count() < CHARACTERS_MIN {
        return Err(Error::invalid(format!("the password is shorter than {CHARACTERS_MIN} characters")));
    }
    let plain = password.to_lowercase();
    let mut distinct: Vec<char> = plain.chars().collect();
    distinct.sort_unstable();
    distinct.dedup();
    if COMMON.contains(&plain) || distinct.len() < 3 || plain == username {
        return Err(Error::invalid("the password is one of those that are guessed first"));
    }
    Ok(())
}

/// Checks only that it is short enough to be hashed.
///
/// # Errors
/// `Invalid`.
pub(super) fn check_length(password: &str) -> Result<()> {
    if password.len() > BYTES_MAX {
        return Err(Error::invalid(format!("the password is longer than {BYTES_MAX} bytes")));
    }
    Ok(())
}

/// Computes hashes, a few at once, away from the threads that serve requests.
#[derive(Debug)]
pub(super) struct Hasher {
    params: Params,
    /// A hash that no password has: what is checked for users that do not exist.
    nobody: String,
    places: Arc<Semaphore>,
    queue: Semaphore,
    workers: Workers,
}

/// A place at work; hashes are computed only by who holds one.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Hasher {
    /// At most `places` hashes at once.
    ///
    /// # Errors
    /// `Internal`.
    pub(super) fn new(places: usize) -> Result<Self> {
        let (memory, passes, lanes) = COST;
        let params = Params::new(memory, passes, lanes, None)
            .map_err(|error| Error::internal(format!("parameters of Argon2: {error}")))?;
        let nobody = new_hash(&params, &random::<32>()?, &mut Memory::new())?;
        Ok(Self {
            params,
            nobody,
            places: Arc::new(Semaphore::new(places)),
            queue: Semaphore::new(places.saturating_mul(QUEUE_PER_PLACE)),
            workers: Workers::start(places)?,
        })
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// `Unavailable` when too many wait, or after a while.
    pub(super) async fn place(&self) -> Result<Place> {
        let busy = || Error::unavailable("too many logins at once").retry_after(1);
        let _waiting = self.queue.try_acquire().map_err(|_| busy())?;
        let place = tokio::time::timeout(WAIT_MAX, Arc::clone(&self.places).acquire_owned()).await;
        place
            .map_err(|_| busy())?
            .map(|_permit| Place { _permit })
            .map_err(|_| Error::unavailable("the daemon stops"))
    }

    /// The hash of a password, as a PHC string with a salt of its own.
    ///
    /// # Errors
    /// `Unavailable` when too many wait.
    pub(super) async fn hash(&self, password: &str) -> Result<String> {
        let place = self.place().await?;
        self.hash_at(&place, password).await
    }

    /// The hash of a password, computed at a place that the caller holds.
    ///
    /// # Errors
    /// `Internal`.
    pub(super) async fn hash_at(&self, _place: &Place, password: &str) -> Result<String> {
        let (params, password) = (self.params.clone(), password.to_owned());
        self.workers.run(move |memory| new_hash(&params, password.as_bytes(), memory)).await?
    }

    /// Whether a password has a hash. Without a hash the same work is done, for nothing.
    ///
    /// # Errors
    /// `Corrupt` for what is no hash.
    pub(super) async fn verify(&self, _place: &Place, password: &str, hash: Option<&str>) -> Result<bool> {
        let password = password.to_owned();
        let known = hash.is_some();
        let hash = hash.unwrap_or(&self.nobody).to_owned();
        let right = self.workers.run(move |memory| fits(&hash, password.as_bytes(), memory)).await??;
        Ok(right && known)
    }

    /// Whether a hash was made with weaker parameters than those in force.
    pub(super) fn is_weaker(&self, hash: &str) -> bool {
        let Ok(hash) = PasswordHash::new(hash) else { return true };
        let Ok(params) = Params::try_from(&hash) else { return true };
        let (memory, passes, _) = COST;
        params.m_cost() < memory || (params.m_cost() == memory && params.t_cost() < passes)
    }
}

/// The hash of a password with a salt of its own.
fn new_hash(params: &Params, password: &[u8], memory: &mut Memory) -> Result<String> {
    let salt = random::<16>()?;
    let hash = hash_with(params, password, &salt, memory)
        .map_err(|error| Error::internal(format!("hashing a password: {error}")))?;
    Ok(hash.to_string())
}

/// Whether a password has a stored hash, which may have been made with other parameters than those in force.
fn fits(stored: &str, password: &[u8], memory: &mut Memory) -> Result<bool> {
    let corrupt = || Error::corrupt("a stored password hash");
    let stored = PasswordHash::new(stored).map_err(|_| corrupt())?;
    let params = Params::try_from(&stored).map_err(|_| corrupt())?;
    let salt = stored.salt.as_ref().ok_or_else(corrupt)?;
    if stored.algorithm != Algorithm::Argon2id.ident() || stored.version != Some(Version::V0x13.into()) {
        return Err(corrupt());
    }
    let hash = hash_with(&params, password, salt, memory).map_err(|_| corrupt())?;
    // `Output` is compared in constant time.
    Ok(hash.hash == stored.hash)
}

/// What the crate's own hasher does, but in memory that is there already.
fn hash_with(
    params: &Params,
    password: &[u8],
    salt: &[u8],
    memory: &mut Memory,
) -> Result<PasswordHash, password_hash::Error> {
    let blocks = params.block_count();
    if memory.len() < blocks {
        memory.resize(blocks, Block::default());
    }
    let mut output = [0; Output::MAX_LENGTH];
    let length = params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN);
    let output = output.get_mut(..length).ok_or(password_hash::Error::OutputSize)?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone()).hash_password_into_with_memory(
        password,
        salt,
        output,
        &mut memory[..blocks],
    )?;
    Ok(PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(params)?,
        salt: Some(Salt::new(salt)?),
        hash: Some(Output::new(output)?),
    })
}

/// Threads that do nothing but hash, each in memory of its own that it uses again and again. Each hash takes 19 MiB, which the
/// allocator would keep for every thread that ever had them: many times what is in use.
#[derive(Debug)]
struct Workers(SyncSender<Task>);

type Memory = Vec<Block>;
type Task = Box<dyn FnOnce(&mut Memory) + Send>;

impl Workers {
    /// So many threads; they end with this.
    fn start(count: usize) -> Result<Self> {
        let (sender, receiver) = mpsc::sync_channel::<Task>(count);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..count {
            let receiver = Arc::clone(&receiver);
            let next = move || receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let run = move || {
                let mut memory = Memory::new();
                while let Ok(task) = next() {
                    // Who waits for it is told by the channel that it drops; the next task wants a thread, too.
                    let _panic = std::panic::catch_unwind(AssertUnwindSafe(|| task(&mut memory)));
                }
            };
            std::thread::Builder::new()
                .name("hasher".to_owned())
                .spawn(run)
                .map_err(|error| Error::internal("starting a thread").because(error))?;
        }
        Ok(Self(sender))
    }

    /// Runs a task of somebody who holds a place, so that there is always room for it.
    async fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Result<T> {
        let failed = || Error::internal("hashing a password");
        let (sender, answer) = oneshot::channel();
        let task = move |memory: &mut Memory| {
            // Whoever asked may be gone.
            let _unheard = sender.send(task(memory));
        };
        self.0.try_send(Box::new(task)).map_err(|_| failed())?;
        answer.await.map_err(|error| failed().because(error))
    }
}

#[cfg(test)]
mod tests {
    use super::{COMMON, Hasher, check_new};

    #[test]
    fn common_short_and_overlong_passwords_are_refused_and_all_others_taken() {
        assert!(COMMON.len() >= 3000, "{}", COMMON.len());
        for bad in [
            "",
            "short",
            "password",
            "PASSWORD",
            "Password123",
            "admin123",
            "12345678",
            "qwertyuiop",
            "aaaaaaaa",
            "iloveyou1",
            "abababab",
            "ursula-x",
        ] {
            assert!(check_new("ursula-x", bad).is_err(), "{bad:?}");
        }
        assert!(check_new("u", &"é".repeat(7)).is_err(), "seven characters of two bytes each");
        assert!(check_new("u", &format!("xyz{}", "a".repeat(1022))).is_err());
        for good in
            ["correct horse", "tr0ub4dor&3", "пароль-для-всех", &"xyz".repeat(43), &"abcd".repeat(256)]
        {
            assert!(check_new("u", good).is_ok(), "{good:?}");
        }
    }

    #[tokio::test]
    async fn a_hash_is_argon2id_salted_and_fits_its_password_only() {
        let hasher = Hasher::new(1).unwrap();
        let long = "0123456789abcdef".repeat(8);
        let hash = hasher.hash(&long).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(hash, hasher.hash(&long).await.unwrap(), "each has its own salt");
        let place = hasher.place().await.unwrap();
        assert!(hasher.verify(&place, &long, Some(&hash)).await.unwrap());
        assert!(!hasher.verify(&place, &long[..72], Some(&hash)).await.unwrap(), "nothing is cut");
        assert!(!hasher.verify(&place, &long, None).await.unwrap());
        assert!(hasher.verify(&place, &long, Some("plain")).await.is_err());
        assert!(!hasher.is_weaker(&hash));
        assert!(hasher.is_weaker(&hash.replace("m=19456", "m=8192")));
        assert!(!hasher.is_weaker(&hash.replace("m=19456", "m=47104")));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_or_behind_too_many_is_sent_away() {
        let hasher = Hasher::new(1).unwrap();
        let place = hasher.place().await.unwrap();
        let waits: Vec<_> = (0..40).map(|_| hasher.place()).collect();
        let answers = futures::future::join_all(waits).await;
        assert!(
            answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.retry_after_s().is_some()))
        );
        drop(place);
        assert!(hasher.place().await.is_ok());
    }
}
