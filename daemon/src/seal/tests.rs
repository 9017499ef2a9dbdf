use std::sync::Arc;

use tandemfs::ErrorKind;
use tandemfs::Result;
use tandemfs::clock::Time;
use tandemfs::id::{UserId, VolumeId, VolumeKey};

use super::key::{Key, Lock};
use super::{Passphrases, SealedStore};
use crate::meta::faulty::{Failure, FaultyStore, Switches};
use crate::meta::memory::MemoryStore;
use crate::meta::{Guard, MetaStore, Write, contract, keys, put, record};

const ONE: &str = "a passphrase of sixteen letters or more";
const TWO: &str = "another one that is long enough";

fn passphrases(now: Option<&str>, before: Option<&str>) -> Passphrases {
    Passphrases { now: now.map(str::to_owned), before: before.map(str::to_owned) }
}

async fn open(store: &MemoryStore, now: Option<&str>, before: Option<&str>) -> Result<SealedStore> {
    SealedStore::open(Arc::new(store.clone()), &passphrases(now, before)).await
}

async fn refusal(store: &MemoryStore, now: Option<&str>, before: Option<&str>) -> String {
    let unchanged = pairs(store).await;
    let error = open(store, now, before).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    assert_eq!(pairs(store).await, unchanged);
    error.subject().to_owned()
}

async fn pairs(store: &dyn MetaStore) -> Vec<(Vec<u8>, Vec<u8>)> {
    store.scan(&[], &keys::END, usize::MAX).await.unwrap()
}

/// Whether some value has a part.
async fn holds(store: &MemoryStore, part: &[u8]) -> bool {
    pairs(store).await.iter().any(|(_, value)| value.windows(part.len()).any(|window| window == part))
}

fn volume(id: u64) -> record::Volume {
    let byte = u8::try_from(id % 200).expect("a byte");
    record::Volume {
        id: VolumeId(id),
        name: None,
        owner: Some(UserId(id)),
        key: VolumeKey([byte + 40; 32]),
        created: Time::from_millis(0),
        removed: false,
    }
}

/// Records of which most are secret, as a daemon commits them.
fn records() -> Vec<Write> {
    let mut writes: Vec<Write> =
        (0..2_500).map(|id| put(keys::volume(VolumeId(id)), &volume(id)).expect("a record")).collect();
    writes.push(put(keys::signing_keys(), "the signing keys").expect("a record"));
    writes.push(put(keys::user(UserId(1)), "the hash of a password").expect("a record"));
    writes.push(put(keys::audit_line(1), "a line").expect("a record"));
    writes.push(put(keys::user_name("alice"), "in the clear").expect("a record"));
    writes
}

const SECRETS: [&[u8]; 4] = [&[77; 32], b"the signing keys", b"the hash of a password", b"a line"];

#[test]
fn what_was_sealed_is_opened_with_its_key_in_its_context_and_only_whole() {
    let key = Key::new(&[1; 32]);
    let sealed = key.seal(b"here", b"a secret").unwrap();
    assert_eq!(key.open(b"here", &sealed).unwrap(), b"a secret");
    assert_ne!(sealed, key.seal(b"here", b"a secret").unwrap());
    assert!(!sealed.windows(8).any(|part| part == b"a secret"));
    assert_eq!(key.open(b"there", &sealed), None);
    assert_eq!(Key::new(&[2; 32]).open(b"here", &sealed), None);
    for at in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[at] ^= 1;
        assert_eq!(key.open(b"here", &damaged), None);
        assert_eq!(key.open(b"here", &sealed[..at]), None);
    }
    assert_eq!(key.open(b"here", &[sealed.as_slice(), &[0]].concat()), None);
    assert_eq!(format!("{key:?}{:?}", passphrases(Some(ONE), None)), "Key(secret)Passphrases(secret)");
}

#[tokio::test]
async fn a_lock_is_opened_by_its_passphrase() {
    let lock = Lock::new(&[7; 32], ONE, true).await.unwrap();
    assert_eq!(lock.open(Some(ONE)).await.unwrap(), Some([7; 32]));
    assert_eq!(lock.open(Some(TWO)).await.unwrap(), None);
    assert_eq!(lock.open(None).await.unwrap(), None);
}

#[tokio::test]
async fn keeps_the_contract_of_an_engine_sealed_and_not() {
    for key in [None, Some(Key::new(&[1; 32]))] {
        let store = || SealedStore {
            inner: Arc::new(MemoryStore::new()),
            key: key.as_ref().map(|_| Key::new(&[1; 32])),
            is_secret: |_| true,
        };
        contract::all(&store()).await;
        contract::counts_concurrently(Arc::new(store())).await;
    }
}

#[tokio::test]
async fn a_new_engine_is_sealed_from_its_first_commit_on_and_opens_with_the_passphrase_only() {
    let engine = MemoryStore::new();
    let store = open(&engine, Some(ONE), None).await.unwrap();
    store.commit(Vec::new(), records()).await.unwrap();
    for secret in SECRETS {
        assert!(!holds(&engine, secret).await);
    }
    assert!(holds(&engine, b"in the clear").await);
    assert!(
        refusal(&engine, None, None).await.contains("name the file with the passphrase in seal_key_file")
    );
    assert!(refusal(&engine, Some(TWO), None).await.contains("seal_old_key_file"));
    assert!(refusal(&engine, None, Some(TWO)).await.contains("seal_old_key_file is not the one"));
    assert!(refusal(&engine, Some(TWO), Some(TWO)).await.contains("neither"));
    let store = open(&engine, Some(ONE), Some(TWO)).await.unwrap();
    for write in records() {
        let value = store.get_many(std::slice::from_ref(&write.key)).await.unwrap().remove(0);
        assert_eq!(value, write.value);
    }
    let found = store.scan(b"l", b"m", 3).await.unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(record::decode::<record::Volume>(&found[2].0, &found[2].1).unwrap(), volume(2));
    // Who reads past this engine is told what it is.
    let (key, value) = engine.scan(b"l", b"m", 1).await.unwrap().remove(0);
    assert!(record::decode::<record::Volume>(&key, &value).unwrap_err().subject().contains("sealed"));
}

#[tokio::test]
async fn a_sealed_record_is_not_taken_for_another_one() {
    let engine = MemoryStore::new();
    let store = open(&engine, Some(ONE), None).await.unwrap();
    store.commit(Vec::new(), records()).await.unwrap();
    let [one, two] = [1, 2].map(|id| keys::volume(VolumeId(id)));
    let stolen = engine.get_many(std::slice::from_ref(&one)).await.unwrap().remove(0);
    engine.commit(Vec::new(), vec![Write { key: two.clone(), value: stolen }]).await.unwrap();
    assert_eq!(store.get_many(std::slice::from_ref(&two)).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(store.scan(&one, b"m", 5).await.unwrap_err().kind(), ErrorKind::Corrupt);
    // Nor does a guard on it hold.
    let guard = Guard { key: two, value: put(one, &volume(1)).unwrap().value };
    assert!(store.commit(vec![guard], Vec::new()).await.is_err());
}

#[tokio::test]
async fn sealing_is_turned_on_and_off_and_the_passphrase_changed_also_when_that_is_cut_off() {
    let engine = MemoryStore::new();
    let clear = open(&engine, None, None).await.unwrap();
    clear.commit(Vec::new(), records()).await.unwrap();
    let before = pairs(&engine).await;
    // On, then another passphrase, then off; each time it is cut off at each of its commits.
    for (now, old) in [(Some(ONE), None), (Some(TWO), Some(ONE)), (None, Some(TWO))] {
        for done in 0.. {
            let switches = Switches::new();
            switches.fail_commits(done, 1, Failure::Refused);
            let faulty: Arc<dyn MetaStore> =
                Arc::new(FaultyStore::new(Arc::new(engine.clone()), switches.clone()));
            let opened = SealedStore::open(faulty, &passphrases(now, old)).await;
            if opened.is_ok() {
                assert!(done > 0 && done < 20);
                break;
            }
        }
        let store = open(&engine, now, None).await.unwrap();
        for write in records() {
            assert_eq!(store.get_many(&[write.key]).await.unwrap(), [write.value]);
        }
        for secret in SECRETS {
            assert_eq!(holds(&engine, secret).await, now.is_none());
        }
        if now == Some(TWO) {
            refusal(&engine, Some(ONE), None).await;
        }
    }
    assert_eq!(pairs(&engine).await, before);
    // One that is half open is sealed whole.
    open(&engine, Some(ONE), None).await.unwrap();
    let switches = Switches::new();
    switches.fail_commits(2, 1, Failure::Refused);
    let faulty: Arc<dyn MetaStore> = Arc::new(FaultyStore::new(Arc::new(engine.clone()), switches));
    SealedStore::open(faulty, &passphrases(None, Some(ONE))).await.unwrap_err();
    assert!(holds(&engine, b"a line").await);
    open(&engine, Some(ONE), None).await.unwrap();
    assert!(!holds(&engine, b"a line").await);
}
