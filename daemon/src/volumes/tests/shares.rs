//! Shared volumes: who may use them, and what a grant's end stops.

use bytes::Bytes;
use futures::future::join_all;
use std::time::Duration;
use tandemfs::api::fs::{Batch, OpenSession, Read, ResumeSession, SessionGrant};
use tandemfs::api::users::Role;
use tandemfs::api::volumes::{Access, ChangeVolume, NewVolume};
use tandemfs::block::Draft;
use tandemfs::id::{BlockId, Ino, SessionId, UserId, VolumeId};
use tandemfs::tree::{Key, Record, Want};
use tandemfs::{ErrorKind, Result};

use super::world::{World, create, write};
use crate::accounts::Caller;
use crate::meta::{self, keys};

/// An admin, whose role opens nothing.
fn admin() -> Caller {
    Caller { user: UserId(9), username: "root".to_owned(), role: Role::Admin, home: VolumeId(900) }
}

impl World {
    /// Makes a shared volume; its number.
    async fn share(&self, name: &str) -> VolumeId {
        let new = NewVolume { name: name.to_owned(), quota_bytes: None, quota_files: None };
        self.volumes.create_shared(&admin(), &new).await.unwrap().volume_id
    }

    async fn session_on(&self, name: &str) -> Result<SessionGrant> {
        let open = OpenSession { volume: Some(name.to_owned()), read_only: false, client: String::new() };
        self.sessions.start(&self.caller, open).await
    }

    async fn grant_ann(&self, name: &str, access: Access) {
        self.volumes.grant(name, self.caller.user, access).await.unwrap();
    }

    async fn create_as(&self, id: SessionId, sequence: u64, name: &str, ino: u64) -> Result<()> {
        self.batch(id, sequence, vec![create(name, ino)]).await.map(drop)
    }

    async fn inodes_of(&self, id: VolumeId) -> u64 {
        self.volumes.usage(id).await.unwrap().inodes
    }
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().unwrap().kind()
}

#[tokio::test(start_paused = true)]
async fn a_grant_opens_a_volume_for_what_it_says_and_outlives_a_restart() {
    let mut world = World::new().await;
    let id = world.share("team").await;
    world.share("unused").await;
    let again = NewVolume { name: "team".to_owned(), quota_bytes: None, quota_files: None };
    assert_eq!(kind(world.volumes.create_shared(&admin(), &again).await), ErrorKind::AlreadyExists);
    assert_eq!(kind(world.session_on("team").await), ErrorKind::NotFound);
    assert_eq!(world.volumes.access(&admin(), id), None);

    world.grant_ann("team", Access::Read).await;
    for _ in 0..2 {
        let granted = world.session_on("team").await.unwrap();
        assert!(granted.read_only && granted.volume == id);
        let read = Read { wants: vec![Want::Record(Key::Usage)] };
        world.sessions.read(&world.caller, granted.session, &read).await.unwrap();
        assert_eq!(kind(world.sessions.inodes(&world.caller, granted.session).await), ErrorKind::ReadOnly);
        assert_eq!(kind(world.create_as(granted.session, 1, "f", 2).await), ErrorKind::ReadOnly);
        let put =
            world.sessions.put_block(&world.caller, granted.session, BlockId([0; 32]), Draft::default());
        assert_eq!(kind(put.await), ErrorKind::ReadOnly);
        let listed = world.volumes.list_shared(&world.caller, 10, None).await.unwrap();
        let listed: Vec<_> = listed.volumes.iter().map(|volume| (&*volume.name, volume.access)).collect();
        assert_eq!(listed, [("team", Some(Access::Read))]);
        assert_eq!(world.volumes.list_shared(&admin(), 10, None).await.unwrap().volumes.len(), 2);
        world.sessions.close(&world.caller, granted.session).await.unwrap();
        world = world.restart().await;
    }

    // More than before ends nothing, less ends the sessions.
    let reading = world.session_on("team").await.unwrap().session;
    world.grant_ann("team", Access::Write).await;
    assert_eq!(kind(world.create_as(reading, 1, "f", 2).await), ErrorKind::ReadOnly);
    world.sessions.close(&world.caller, reading).await.unwrap();
    let quota = ChangeVolume { quota_files: Some(2), ..ChangeVolume::default() };
    world.volumes.change_shared(&admin(), "team", &quota).await.unwrap();
    let writing = world.session_on("team").await.unwrap();
    let first = world.sessions.inodes(&world.caller, writing.session).await.unwrap().first.0;
    world.create_as(writing.session, 1, "f", first).await.unwrap();
    world.create_as(writing.session, 2, "g", first + 1).await.unwrap();
    assert_eq!(kind(world.create_as(writing.session, 3, "h", first + 2).await), ErrorKind::QuotaExceeded);
    world.grant_ann("team", Access::Read).await;
    assert_eq!(kind(world.create_as(writing.session, 4, "i", first + 3).await), ErrorKind::SessionEnded);
    assert!(world.session_on("team").await.unwrap().read_only);
    assert_eq!(world.inodes_of(id).await, 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_committed_any_more_once_a_grant_is_taken_away() {
    let world = World::new().await;
    let id = world.share("team").await;
    world.grant_ann("team", Access::Write).await;
    let session = world.session_on("team").await.unwrap().session;
    let first = world.sessions.inodes(&world.caller, session).await.unwrap().first.0;
    world.switches.delay(Duration::from_millis(5), Duration::from_millis(20));
    let batches = (0..40).map(|number| {
        let world = &world;
        async move { world.create_as(session, number + 1, &format!("f{number}"), first + number).await }
    });
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.volumes.revoke("team", world.caller.user).await.unwrap();
        world.inodes_of(id).await
    };
    let (answers, at_once) = futures::join!(join_all(batches), revoke);
    let done = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
    assert!(done > 0 && done < 40, "{done} of 40 were committed");
    let refused = answers.into_iter().filter_map(Result::err);
    assert!(refused.into_iter().all(|error| error.kind() == ErrorKind::SessionEnded));
    assert_eq!((at_once, world.inodes_of(id).await), (done, done));
    assert_eq!(kind(world.volumes.revoke("team", world.caller.user).await), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_stored_session_opens_nothing_without_its_grant() {
    let mut world = World::new().await;
    let id = world.share("team").await;
    let key = keys::grant(id, world.caller.user);
    for (after, expected) in [(Some(Access::Read), ErrorKind::ReadOnly), (None, ErrorKind::SessionEnded)] {
        world.grant_ann("team", Access::Write).await;
        let session = world.session_on("team").await.unwrap().session;
        let first = world.sessions.inodes(&world.caller, session).await.unwrap().first.0;
        // The daemon is killed when the grant has been changed and the sessions have not ended yet.
        let write = match after {
            Some(access) => meta::put(key.clone(), &access).unwrap(),
            None => meta::remove(key.clone()),
        };
        world.meta.commit(Vec::new(), vec![write]).await.unwrap();
        world = world.restart().await;
        assert_eq!(kind(world.create_as(session, 1, "f", first).await), expected);
        let resumed = world.sessions.resume(&world.caller, session, &ResumeSession::default()).await;
        assert_eq!(resumed.is_ok(), after.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_volume_leaves_nothing_behind() {
    let world = World::new().await;
    let id = world.share("team").await;
    world.grant_ann("team", Access::Write).await;
    let granted = world.session_on("team").await.unwrap();
    let first = world.sessions.inodes(&world.caller, granted.session).await.unwrap().first.0;
    let data = Bytes::from_static(b"of the team");
    let block = BlockId::of(&granted.key, &data);
    world.sessions.put_block(&world.caller, granted.session, block, Draft::of(&data).unwrap()).await.unwrap();
    let mutations = vec![create("f", first), write(first, 0, 11, block)];
    let batch = Batch {
        sequence: 1,
        mutations,
        held: Vec::new(),
        delegates: Vec::new(),
        blocks: Vec::new(),
        brief: false,
    };
    world.sessions.batch(&world.caller, granted.session, batch).await.unwrap();

    world.volumes.delete_shared("team").await.unwrap();
    let read = Read { wants: vec![Want::Record(Key::Inode(Ino::ROOT))] };
    let refused = world.sessions.read(&world.caller, granted.session, &read).await;
    assert_eq!(kind(refused), ErrorKind::SessionEnded);
    assert_eq!(kind(world.session_on("team").await), ErrorKind::NotFound);
    assert_eq!(kind(world.volumes.delete_shared("team").await), ErrorKind::NotFound);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let prefix = keys::tree_prefix(id);
    let left = world.meta.scan::<Record>(&prefix, &keys::end_of(&prefix), 10).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    let (from, to) = keys::all_grants(id);
    assert!(world.meta.scan::<Access>(&from, &to, 10).await.unwrap().is_empty());
    world.clock.advance(120_000);
    assert_eq!((world.collect().await.unwrap(), world.objects().await), (1, 0));

    // One of the same name is another one.
    assert_ne!(world.share("team").await, id);
    assert_eq!(kind(world.session_on("team").await), ErrorKind::NotFound);
    world.grant_ann("team", Access::Write).await;
    world.volumes.revoke_all(world.caller.user).await.unwrap();
    assert_eq!(world.volumes.grants("team", 10, None).unwrap(), (Vec::new(), None));
}

#[tokio::test(start_paused = true)]
async fn lists_are_paged() {
    let world = World::new().await;
    for number in 0..7 {
        world.share(&format!("v{number}")).await;
    }
    for user in 1..=7 {
        world.volumes.grant("v3", UserId(user), Access::Read).await.unwrap();
    }
    for limit in [0, 1001] {
        assert_eq!(kind(world.volumes.list_shared(&admin(), limit, None).await), ErrorKind::Invalid);
        assert_eq!(kind(world.volumes.grants("v3", limit, None)), ErrorKind::Invalid);
    }
    let (mut names, mut cursor) = (Vec::new(), None);
    loop {
        let page = world.volumes.list_shared(&admin(), 3, cursor.as_deref()).await.unwrap();
        names.extend(page.volumes.into_iter().map(|volume| volume.name));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(names.join(" "), "v0 v1 v2 v3 v4 v5 v6");
    let (page, next) = world.volumes.grants("v3", 4, None).unwrap();
    let (rest, end) = world.volumes.grants("v3", 4, next.as_deref()).unwrap();
    let users: Vec<_> = page.into_iter().chain(rest).map(|(user, _)| user.0).collect();
    assert_eq!((users, end), ((1..=7).collect(), None));
}
