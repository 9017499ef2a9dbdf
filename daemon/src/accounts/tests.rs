use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tandemfs::ErrorKind;
use tandemfs::Result;
use tandemfs::api::users::{ChangeUser, NewToken, Role};
use tandemfs::clock::ManualClock;
use tandemfs::id::{UserId, VolumeId};

use super::{Accounts, Caller, Homes, NewUser, Rules};
use crate::audit::Audit;
use crate::meta::memory::MemoryStore;
use crate::meta::{Meta, Write};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const GOOD: &str = "a good long password";

#[derive(Debug, Default)]
struct FakeHomes {
    ended: Mutex<Vec<UserId>>,
    removed: Mutex<Vec<VolumeId>>,
}

#[async_trait]
impl Homes for FakeHomes {
    async fn new_home(
        &self,
        owner: UserId,
        _: Option<u64>,
        _: Option<u64>,
    ) -> Result<(VolumeId, Vec<Write>)> {
        Ok((VolumeId(owner.0 + 100), Vec::new()))
    }
    async fn quota(&self, _: VolumeId) -> Result<(Option<u64>, Option<u64>)> {
        Ok((None, None))
    }
    async fn set_quota(&self, _: VolumeId, _: Option<u64>, _: Option<u64>) -> Result<()> {
        Ok(())
    }
    async fn remove(&self, home: VolumeId) -> Result<()> {
        self.removed.lock().unwrap().push(home);
        Ok(())
    }
    async fn end_sessions(&self, user: UserId) {
        self.ended.lock().unwrap().push(user);
    }
    async fn revoke_grants(&self, _: UserId) -> Result<()> {
        Ok(())
    }
}

struct World {
    store: MemoryStore,
    clock: ManualClock,
    homes: Arc<FakeHomes>,
    key: PathBuf,
    keep_key_file: bool,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            store: MemoryStore::new(),
            clock: ManualClock::at(1_800_000_000_000),
            homes: Arc::default(),
            key: directory.path().join("jwt.key"),
            keep_key_file: true,
            _directory: directory,
        }
    }

    async fn start(&self) -> Accounts {
        self.start_with(None).await.unwrap()
    }

    async fn start_with(&self, password: Option<&str>) -> Result<Accounts> {
        let meta = Meta::open(Arc::new(self.store.clone())).await?;
        let rules = Rules {
            token_ttl_s: 900,
            max_logins: 2,
            quota_bytes: None,
            quota_files: None,
            keep_key_file: self.keep_key_file,
        };
        let homes: Arc<dyn Homes> = self.homes.clone();
        let clock = Arc::new(self.clock.clone());
        let audit = Audit::open(&self.key.with_file_name("audit"), meta.clone(), clock.clone()).await?;
        Accounts::open(meta, Arc::new(audit), homes, clock, rules, &self.key, password).await
    }
}

async fn token_of_admin(accounts: &Accounts) -> String {
    accounts.login("admin", "admin123", HERE).await.unwrap().token
}

async fn admin(accounts: &Accounts) -> Caller {
    accounts.authenticate(&token_of_admin(accounts).await).await.unwrap().0
}

async fn with_alice(accounts: &Accounts) -> Caller {
    let admin = admin(accounts).await;
    accounts.create(&admin, &new("alice"), HERE).await.unwrap();
    accounts.authenticate(&token(accounts, "alice").await).await.unwrap().0
}

fn new(name: &str) -> NewUser {
    NewUser {
        username: name.to_owned(),
        password: GOOD.to_owned(),
        role: Role::User,
        quota_bytes: None,
        quota_files: None,
    }
}

async fn token(accounts: &Accounts, name: &str) -> String {
    accounts.login(name, GOOD, HERE).await.unwrap().token
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().unwrap().kind()
}

#[tokio::test]
async fn the_first_admin_has_the_known_password_on_this_machine_only_and_until_it_is_changed() {
    let world = World::new();
    let accounts = world.start().await;
    assert!(accounts.has_default_password().await.unwrap());
    assert_eq!(kind(accounts.login("admin", "admin123", ELSEWHERE).await), ErrorKind::DefaultPassword);
    assert_eq!(kind(accounts.login("admin", "admin124", ELSEWHERE).await), ErrorKind::Unauthenticated);
    let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
    assert!(accounts.login("admin", "admin123", mapped).await.is_ok());
    let admin = admin(&accounts).await;
    assert_eq!(admin.role, Role::Admin);
    for bad in ["admin123", "short"] {
        assert_eq!(kind(accounts.change_password(&admin, "admin123", bad, HERE).await), ErrorKind::Invalid);
    }
    accounts.change_password(&admin, "admin123", GOOD, HERE).await.unwrap();
    assert!(!accounts.has_default_password().await.unwrap());
    assert!(accounts.login("admin", GOOD, ELSEWHERE).await.is_ok());
    let again = world.start().await;
    assert_eq!(kind(again.login("admin", "admin123", HERE).await), ErrorKind::Unauthenticated);
    assert_eq!(again.count().await.unwrap(), 1, "the first admin is made once");
}

#[tokio::test]
async fn a_password_given_at_the_first_start_replaces_the_known_one() {
    let world = World::new();
    assert_eq!(kind(world.start_with(Some("admin123")).await), ErrorKind::Invalid);
    let accounts = world.start_with(Some(GOOD)).await.unwrap();
    assert!(!accounts.has_default_password().await.unwrap());
    assert_eq!(kind(accounts.login("admin", "admin123", HERE).await), ErrorKind::Unauthenticated);
    assert!(accounts.login("admin", GOOD, ELSEWHERE).await.is_ok());
}

#[tokio::test]
async fn ten_failures_stop_a_guesser_and_nobody_else_also_after_a_restart() {
    let world = World::new();
    let accounts = world.start().await;
    with_alice(&accounts).await;
    for _ in 0..10 {
        assert_eq!(kind(accounts.login("alice", "wrong", ELSEWHERE).await), ErrorKind::Unauthenticated);
    }
    let refused = accounts.login("alice", GOOD, ELSEWHERE).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooManyRequests);
    assert!(refused.retry_after_s().is_some_and(|seconds| (1..=900).contains(&seconds)));
    assert!(accounts.login("alice", GOOD, HERE).await.is_ok(), "the right password from another address");
    assert_eq!(kind(accounts.login("admin", "wrong", ELSEWHERE).await), ErrorKind::Unauthenticated);
    drop(accounts);

    let accounts = world.start().await;
    assert_eq!(kind(accounts.login("alice", GOOD, ELSEWHERE).await), ErrorKind::TooManyRequests);
    world.clock.advance(15 * 60 * 1000 + 1);
    assert!(accounts.login("alice", GOOD, ELSEWHERE).await.is_ok());
}

#[tokio::test]
async fn guesses_that_run_at_once_are_counted_exactly() {
    let world = World::new();
    let accounts = world.start().await;
    let tries = (0..40).map(|_| accounts.login("nobody", "wrong", ELSEWHERE));
    let answers = futures::future::join_all(tries).await;
    let checked = answers
        .iter()
        .filter(|answer| answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unauthenticated));
    assert!(checked.count() <= 10);
}

#[tokio::test]
async fn one_address_has_a_hundred_failures_over_all_names() {
    let world = World::new();
    let accounts = world.start().await;
    let mut refused_at = None;
    for n in 0..110 {
        if kind(accounts.login(&format!("user{n}"), "wrong", ELSEWHERE).await) == ErrorKind::TooManyRequests {
            refused_at = Some(n);
            break;
        }
    }
    assert_eq!(refused_at, Some(100));
    assert!(accounts.login("admin", "admin123", HERE).await.is_ok());
}

#[tokio::test]
async fn unknown_wrong_and_disabled_look_the_same() {
    let world = World::new();
    let accounts = world.start().await;
    with_alice(&accounts).await;
    let admin = admin(&accounts).await;
    let disable = ChangeUser { disabled: Some(true), ..ChangeUser::default() };
    accounts.change(&admin, "alice", &disable, HERE).await.unwrap();
    let mut answers = Vec::new();
    for (name, password) in
        [("alice", GOOD), ("alice", "wrong"), ("nosuch", GOOD), ("Not A Name", GOOD), ("admin", GOOD)]
    {
        let error = accounts.login(name, password, HERE).await.unwrap_err();
        answers.push((error.kind(), error.to_string(), error.retry_after_s()));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(kind(accounts.login("alice", &"x".repeat(1025), HERE).await), ErrorKind::Invalid);
}

#[tokio::test]
async fn names_that_could_be_mistaken_are_refused_and_each_is_given_once() {
    let world = World::new();
    let accounts = world.start().await;
    let admin = admin(&accounts).await;
    let long = "a".repeat(65);
    for bad in [
        "", "Alice", "alice ", " alice", "aliсe", "../x", ".x", "-x", "_x", "a/b", "a\0b", "a\nb", "é", &long,
    ] {
        assert_eq!(kind(accounts.create(&admin, &new(bad), HERE).await), ErrorKind::Invalid, "{bad:?}");
    }
    accounts.create(&admin, &new(&"a".repeat(64)), HERE).await.unwrap();
    let twins = [new("bob"), new("bob"), new("bob")];
    let tries = twins.iter().map(|twin| accounts.create(&admin, twin, HERE));
    let made = futures::future::join_all(tries).await;
    assert_eq!(made.iter().filter(|result| result.is_ok()).count(), 1);
    for result in made.into_iter().filter(Result::is_err) {
        assert_eq!(kind(result), ErrorKind::AlreadyExists);
    }
    let page = accounts.list(2, None).await.unwrap();
    assert_eq!(page.users.len(), 2);
    let rest = accounts.list(2, page.next_cursor.as_deref()).await.unwrap();
    assert_eq!((rest.users.len(), rest.next_cursor), (1, None));
}

#[tokio::test]
async fn tokens_end_by_logout_password_role_disabling_and_deletion() {
    let world = World::new();
    let accounts = world.start().await;
    let alice = with_alice(&accounts).await;
    let admin = admin(&accounts).await;
    let api = accounts
        .create_token(&alice, &NewToken { name: "ci".to_owned(), expires_in_days: None }, HERE)
        .await
        .unwrap()
        .token;
    let one = token(&accounts, "alice").await;
    let two = token(&accounts, "alice").await;

    accounts.logout(&alice, &one, HERE).await.unwrap();
    assert_eq!(kind(accounts.authenticate(&one).await), ErrorKind::Unauthenticated);
    assert!(accounts.authenticate(&two).await.is_ok());
    drop(accounts);
    let accounts = world.start().await;
    assert_eq!(kind(accounts.authenticate(&one).await), ErrorKind::Unauthenticated, "also after a restart");
    assert_eq!(accounts.authenticate(&two).await.unwrap().0, alice);

    assert_eq!(
        kind(accounts.change_password(&alice, "wrong", "another password", HERE).await),
        ErrorKind::Forbidden
    );
    accounts.change_password(&alice, GOOD, "another password", HERE).await.unwrap();
    assert_eq!(kind(accounts.authenticate(&two).await), ErrorKind::Unauthenticated);
    assert_eq!(kind(accounts.authenticate(&api).await), ErrorKind::Unauthenticated);
    assert!(accounts.list_tokens("alice").await.unwrap().is_empty());

    let changes = [
        ChangeUser { role: Some(Role::Admin), ..ChangeUser::default() },
        ChangeUser { disabled: Some(true), ..ChangeUser::default() },
        ChangeUser { password: Some("chosen by an admin".to_owned()), ..ChangeUser::default() },
    ];
    for (change, password) in
        changes.iter().zip(["another password", "another password", "chosen by an admin"])
    {
        let before = accounts.login("alice", "another password", HERE).await.unwrap().token;
        assert!(accounts.authenticate(&before).await.is_ok());
        accounts.change(&admin, "alice", change, HERE).await.unwrap();
        assert_eq!(kind(accounts.authenticate(&before).await), ErrorKind::Unauthenticated, "{change:?}");
        let back = ChangeUser { disabled: Some(false), ..ChangeUser::default() };
        accounts.change(&admin, "alice", &back, HERE).await.unwrap();
        assert_eq!(kind(accounts.authenticate(&before).await), ErrorKind::Unauthenticated);
        assert!(accounts.login("alice", password, HERE).await.is_ok());
    }

    let last = accounts.login("alice", "chosen by an admin", HERE).await.unwrap().token;
    accounts.delete(&admin, "alice", HERE).await.unwrap();
    assert_eq!(kind(accounts.authenticate(&last).await), ErrorKind::Unauthenticated);
    assert_eq!(*world.homes.removed.lock().unwrap(), [alice.home]);
    assert!(world.homes.ended.lock().unwrap().contains(&alice.user));
    assert_eq!(kind(accounts.user("alice").await), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_is_under_way_is_cut_with_its_token_and_nothing_else_is() {
    let world = World::new();
    let accounts = world.start().await;
    let alice = with_alice(&accounts).await;
    let admin = admin(&accounts).await;
    let visit = async |secret: &str| accounts.authenticate(secret).await.unwrap().1;
    let make = NewToken { name: "ci".to_owned(), expires_in_days: None };
    let api = accounts.create_token(&alice, &make, HERE).await.unwrap();
    let (one, two) = (token(&accounts, "alice").await, token(&accounts, "alice").await);
    let [of_one, again, of_two, of_api] =
        [visit(&one).await, visit(&one).await, visit(&two).await, visit(&api.token).await];

    accounts.logout(&alice, &one, HERE).await.unwrap();
    of_one.cut().await;
    assert!(again.is_cut() && !of_two.is_cut() && !of_api.is_cut());
    accounts.revoke_token(&admin, "alice", &api.info.token_id, HERE).await.unwrap();
    assert!(of_api.is_cut() && !of_two.is_cut());

    let own = visit(&token_of_admin(&accounts).await).await;
    let quota = ChangeUser { quota_bytes: Some(1), ..ChangeUser::default() };
    accounts.change(&admin, "alice", &quota, HERE).await.unwrap();
    world.clock.advance(3600 * 1000);
    assert!(!of_two.is_cut(), "neither a quota nor the end of a token's life cuts what was begun");
    for change in [
        ChangeUser { role: Some(Role::Admin), ..ChangeUser::default() },
        ChangeUser { password: Some("chosen by an admin".to_owned()), ..ChangeUser::default() },
        ChangeUser { disabled: Some(true), ..ChangeUser::default() },
    ] {
        let password = if change.role.is_some() { GOOD } else { "chosen by an admin" };
        let password = if change.password.is_some() { GOOD } else { password };
        let login = accounts.login("alice", password, HERE).await.unwrap().token;
        let visit = visit(&login).await;
        accounts.change(&admin, "alice", &change, HERE).await.unwrap();
        assert!(visit.is_cut(), "{change:?}");
    }
    accounts.create(&admin, &new("bob"), HERE).await.unwrap();
    let (bob, visit_of_bob) = accounts.authenticate(&token(&accounts, "bob").await).await.unwrap();
    accounts.change_password(&bob, GOOD, "another password", HERE).await.unwrap();
    assert!(visit_of_bob.is_cut());
    let last = visit(&accounts.login("bob", "another password", HERE).await.unwrap().token).await;
    accounts.delete(&admin, "bob", HERE).await.unwrap();
    assert!(last.is_cut() && !own.is_cut());
}

#[tokio::test]
async fn another_key_signs_without_a_restart_and_a_dropped_key_ends_its_logins() {
    let world = World::new();
    let accounts = world.start().await;
    let admin = admin(&accounts).await;
    with_alice(&accounts).await;
    let old = token(&accounts, "alice").await;
    let (_, of_old) = accounts.authenticate(&old).await.unwrap();
    let keys = accounts.rotate_keys(&admin, HERE).await.unwrap().keys;
    assert!(keys.len() == 2 && keys[0].replaced.is_none() && keys[1].replaced.is_some(), "{keys:?}");
    let new = token(&accounts, "alice").await;
    drop(accounts);
    let accounts = world.start().await;
    assert!(accounts.authenticate(&old).await.is_ok(), "until it expires, also after a restart");
    let (_, of_new) = accounts.authenticate(&new).await.unwrap();
    accounts.drop_key(&admin, &keys[1].key_id, HERE).await.unwrap();
    assert_eq!(kind(accounts.authenticate(&old).await), ErrorKind::Unauthenticated);
    assert!(accounts.authenticate(&new).await.is_ok() && !of_new.is_cut());
    assert!(!of_old.is_cut(), "it is of another run");
    accounts.drop_key(&admin, &keys[0].key_id, HERE).await.unwrap();
    assert!(of_new.is_cut());
    assert_eq!(kind(accounts.authenticate(&new).await), ErrorKind::Unauthenticated);
    assert!(accounts.authenticate(&token(&accounts, "alice").await).await.is_ok(), "a new one has its place");
    assert_eq!(kind(accounts.drop_key(&admin, "no such", HERE).await), ErrorKind::NotFound);
    let entries = accounts.audit.page(100, None).await.unwrap().entries;
    let told: Vec<_> = entries.iter().map(|entry| (entry.what.as_str(), entry.result.as_str())).collect();
    for what in [("rotate signing keys", "ok"), ("drop signing key", "ok"), ("drop signing key", "not_found")]
    {
        assert!(told.contains(&what), "{told:?}");
    }
}

#[tokio::test]
async fn there_is_always_an_admin() {
    let world = World::new();
    let accounts = world.start().await;
    let admin = admin(&accounts).await;
    for change in [
        ChangeUser { role: Some(Role::User), ..ChangeUser::default() },
        ChangeUser { disabled: Some(true), ..ChangeUser::default() },
    ] {
        assert_eq!(kind(accounts.change(&admin, "admin", &change, HERE).await), ErrorKind::Forbidden);
    }
    assert_eq!(kind(accounts.delete(&admin, "admin", HERE).await), ErrorKind::Forbidden);
    accounts.create(&admin, &NewUser { role: Role::Admin, ..new("second") }, HERE).await.unwrap();
    accounts.delete(&admin, "admin", HERE).await.unwrap();
}

#[tokio::test]
async fn api_tokens_are_named_listed_expire_and_are_revoked() {
    let world = World::new();
    let accounts = world.start().await;
    let alice = with_alice(&accounts).await;
    let make = |name: &str, days| NewToken { name: name.to_owned(), expires_in_days: days };
    for bad in [
        make("", None),
        make("a\nb", None),
        make(&"x".repeat(65), None),
        make("x", Some(0)),
        make("x", Some(3651)),
    ] {
        assert_eq!(kind(accounts.create_token(&alice, &bad, HERE).await), ErrorKind::Invalid);
    }
    let forever = accounts.create_token(&alice, &make("forever", None), HERE).await.unwrap();
    let day = accounts.create_token(&alice, &make("day", Some(1)), HERE).await.unwrap();
    assert_eq!(kind(accounts.create_token(&alice, &make("day", None), HERE).await), ErrorKind::AlreadyExists);
    assert!(forever.token.starts_with("tfs_") && forever.token.len() == 4 + 64);

    assert_eq!(accounts.authenticate(&forever.token).await.unwrap().0, alice);
    assert_eq!(accounts.authenticate(&day.token).await.unwrap().0, alice);
    let names: Vec<_> =
        accounts.list_tokens("alice").await.unwrap().into_iter().map(|t| (t.name, t.last_used)).collect();
    assert_eq!(names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["day", "forever"]);
    assert!(
        names.iter().all(|(_, used)| used.as_deref().is_some_and(|used| used.ends_with(":00.000000000Z"))),
        "{names:?}"
    );

    world.clock.advance(24 * 3600 * 1000);
    assert_eq!(kind(accounts.authenticate(&day.token).await), ErrorKind::Unauthenticated);
    assert!(accounts.authenticate(&forever.token).await.is_ok());
    let mut wrong = forever.token.clone();
    wrong.pop();
    for bad in ["tfs_", &wrong, &format!("{}0", forever.token), &forever.token.to_uppercase()] {
        assert_eq!(kind(accounts.authenticate(bad).await), ErrorKind::Unauthenticated);
    }
    assert_eq!(kind(accounts.revoke_token(&alice, "alice", "no such", HERE).await), ErrorKind::NotFound);
    accounts.revoke_token(&alice, "alice", &forever.info.token_id, HERE).await.unwrap();
    assert_eq!(kind(accounts.authenticate(&forever.token).await), ErrorKind::Unauthenticated);
}

#[tokio::test]
async fn a_weak_hash_is_renewed_at_the_next_login_and_no_secret_is_stored() {
    let world = World::new();
    let accounts = world.start().await;
    let alice = with_alice(&accounts).await;
    let weak = argon2::Argon2::new(
        argon2::Algorithm::Argon2id,
        argon2::Version::V0x13,
        argon2::Params::new(64, 1, 1, None).unwrap(),
    );
    let hash = argon2::PasswordHasher::hash_password_with_salt(&weak, GOOD.as_bytes(), &[1; 16])
        .unwrap()
        .to_string();
    let before = accounts.by_id(alice.user).await.unwrap().unwrap();
    let weaker = super::Account { password: hash, ..(*before).clone() };
    accounts.replace(&before, weaker, Vec::new()).await.unwrap();
    let old = token(&accounts, "alice").await;
    let after = accounts.by_id(alice.user).await.unwrap().unwrap();
    assert!(after.password.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", after.password);
    assert!(accounts.authenticate(&old).await.is_ok(), "the password is the same, so tokens live on");

    let api = accounts
        .create_token(&alice, &NewToken { name: "ci".to_owned(), expires_in_days: None }, HERE)
        .await
        .unwrap();
    use crate::meta::MetaStore as _;
    let all = world.store.scan(&[], &[0xff; 8], 10_000).await.unwrap();
    for secret in [GOOD.as_bytes(), old.as_bytes(), api.token.as_bytes(), &api.token.as_bytes()[4..]] {
        assert!(all.iter().all(|(key, value)| {
            !key.windows(secret.len()).any(|part| part == secret)
                && !value.windows(secret.len()).any(|part| part == secret)
        }));
    }
}

#[tokio::test]
async fn signing_keys_survive_the_file_and_a_file_counts_more_than_the_record() {
    let mut world = World::new();
    let accounts = world.start().await;
    let first = token_of_admin(&accounts).await;
    let caller = admin(&accounts).await;
    accounts.rotate_keys(&caller, HERE).await.unwrap();
    let second = token_of_admin(&accounts).await;
    let gone = token_of_admin(&accounts).await;
    accounts.logout(&caller, &gone, HERE).await.unwrap();
    let text = std::fs::read_to_string(&world.key).unwrap();
    drop(accounts);
    std::fs::remove_file(&world.key).unwrap();
    let accounts = world.start().await;
    for token in [&first, &second] {
        assert!(accounts.authenticate(token).await.is_ok());
    }
    assert_eq!(kind(accounts.authenticate(&gone).await), ErrorKind::Unauthenticated);
    assert_eq!(std::fs::read_to_string(&world.key).unwrap(), text);
    let mode = std::fs::metadata(&world.key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A dropped key stays dropped.
    let keys = accounts.list_keys().keys;
    accounts.drop_key(&caller, &keys[1].key_id, HERE).await.unwrap();
    drop(accounts);
    std::fs::remove_file(&world.key).unwrap();
    let accounts = world.start().await;
    assert_eq!(kind(accounts.authenticate(&first).await), ErrorKind::Unauthenticated);
    assert!(accounts.authenticate(&second).await.is_ok());
    drop(accounts);
    // An operator's own file counts, and is recorded.
    let own = format!("{}\n", hex::encode([7; 32]));
    tandemfs::config::write_secret(&world.key, own.as_bytes()).unwrap();
    let accounts = world.start().await;
    assert_eq!(kind(accounts.authenticate(&second).await), ErrorKind::Unauthenticated);
    let third = token_of_admin(&accounts).await;
    let entries = accounts.audit.page(10, None).await.unwrap().entries;
    assert!(entries.iter().any(|entry| entry.what == "change signing keys"), "{entries:?}");
    drop(accounts);
    std::fs::remove_file(&world.key).unwrap();
    let accounts = world.start().await;
    assert!(accounts.authenticate(&third).await.is_ok());
    assert_eq!(std::fs::read_to_string(&world.key).unwrap(), own);
    drop(accounts);
    // Where the metadata is sealed there is no file, but one that was put there counts.
    world.keep_key_file = false;
    let accounts = world.start().await;
    assert!(accounts.authenticate(&third).await.is_ok());
    accounts.rotate_keys(&caller, HERE).await.unwrap();
    assert!(!world.key.exists());
    drop(accounts);
    tandemfs::config::write_secret(&world.key, text.as_bytes()).unwrap();
    let accounts = world.start().await;
    assert!(accounts.authenticate(&second).await.is_ok());
    assert!(!world.key.exists());
}
