//! Attributes of files: times, owners and those with a name; and a mount that may change nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tandemfs::ErrorKind;
use tandemfs::clock::Time;
use tandemfs::id::Ino;
use tandemfs::tree::{Credentials, Key, NewNode, Record, RenameMode, XattrMode};

use super::fake::Daemon;
use super::{ROOT, content, make, mount, mount_with};
use crate::fs::data::How;
use crate::fs::ids::{Ids, Squash};
use crate::fs::{Fs, Options, Set, SetTime};

#[tokio::test(start_paused = true)]
async fn times_set_after_writing_stay() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    let (stat, handle) = fs.create(ROOT, Ino::ROOT, b"a", 0o644.into(), 0).await.unwrap();
    fs.write(handle, 0, b"data", How::default()).await.unwrap();
    let batches = daemon.batches.load(Ordering::SeqCst);
    let time = Time { seconds: 5, nanos: 7 };
    let set = Set { mtime: Some(SetTime::At(time)), ..Set::default() };
    fs.setattr(ROOT, stat.inode.ino, set).await.unwrap();
    fs.flush(handle).await.unwrap();
    assert_eq!(daemon.batches.load(Ordering::SeqCst), batches + 1, "data and times in one batch");
    match daemon.record(&Key::Inode(stat.inode.ino)) {
        Some(Record::Inode(inode)) => assert_eq!((inode.mtime, inode.size), (time, 4)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn owners_are_stored_in_the_volumes_numbers_and_shown_in_the_machines() {
    let daemon = Arc::new(Daemon::default());
    let mut ids = Ids { squash: Squash::Root, anonymous_user: 77, anonymous_group: 78, ..Ids::default() };
    ids.users.add("1000:5000").unwrap();
    ids.groups.add("100:6000").unwrap();
    let (here, _) = mount_with(&daemon, Options { ids, ..Options::default() }).await;
    let there = mount(&daemon).await;
    let owner = async |fs: &Fs, ino: Ino| {
        let inode = fs.getattr(ino).await.unwrap().inode;
        (inode.uid, inode.gid)
    };
    let user = Credentials { uid: 1000, gid: 100 };
    let made = here.make(user, Ino::ROOT, b"d", NewNode::Directory, 0o1777.into()).await.unwrap().inode;
    assert_eq!((made.uid, made.gid), (1000, 100));
    assert_eq!(owner(&there, made.ino).await, (5000, 6000));
    let by_root = here.make(ROOT, made.ino, b"r", NewNode::File, 0o644.into()).await.unwrap().inode;
    assert_eq!(((by_root.uid, by_root.gid), owner(&there, by_root.ino).await), ((77, 78), (77, 78)));

    let chown = |uid, gid| Set { uid, gid, ..Set::default() };
    here.setattr(ROOT, by_root.ino, chown(Some(1000), Some(7))).await.unwrap();
    assert_eq!((owner(&here, by_root.ino).await, owner(&there, by_root.ino).await), ((1000, 7), (5000, 7)));
    for refused in [chown(Some(0), None), chown(Some(5000), None), chown(None, Some(6000))] {
        let error = here.setattr(ROOT, by_root.ino, refused).await.unwrap_err();
        assert_eq!(error.errno(), libc::EPERM, "{refused:?}");
    }
    // A squashed root is not root in a sticky directory; the one to whom things belong is known by the other number.
    there.setattr(ROOT, by_root.ino, chown(Some(1), None)).await.unwrap();
    there.setattr(ROOT, made.ino, chown(Some(1), None)).await.unwrap();
    assert_eq!(here.remove(ROOT, made.ino, b"r", false).await.unwrap_err().errno(), libc::EPERM);
    there.setattr(ROOT, by_root.ino, chown(Some(5000), None)).await.unwrap();
    here.rename(user, (made.ino, b"r"), (made.ino, b"s"), RenameMode::NoReplace).await.unwrap();
    here.remove(user, made.ino, b"s", false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn attributes_with_names_and_values() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let ino = make(&one, "a", b"").await;
    one.set_xattr(ROOT, ino, b"user.x", b"1", XattrMode::Create).await.unwrap();
    assert_eq!(two.get_xattr(ino, b"user.x").await.unwrap(), b"1");
    one.set_xattr(ROOT, ino, b"user.x", b"2", XattrMode::Replace).await.unwrap();
    assert_eq!(two.get_xattr(ino, b"user.x").await.unwrap(), b"2");
    assert_eq!(two.list_xattrs(ROOT, ino).await.unwrap(), b"user.x\0");
    two.remove_xattr(ino, b"user.x").await.unwrap();
    assert_eq!(one.get_xattr(ino, b"user.x").await.unwrap_err().kind(), ErrorKind::NoAttribute);
    for (name, kind) in
        [(&b"system.posix_acl_access"[..], ErrorKind::NoAttribute), (b"system.x", ErrorKind::Unsupported)]
    {
        assert_eq!(one.get_xattr(ino, name).await.unwrap_err().kind(), kind);
    }
    one.set_xattr(ROOT, ino, b"trusted.x", b"", XattrMode::Set).await.unwrap();
    let somebody = Credentials { uid: 5, gid: 5 };
    assert_eq!(one.list_xattrs(ROOT, ino).await.unwrap(), b"trusted.x\0");
    assert_eq!(one.list_xattrs(somebody, ino).await.unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_changed_through_a_read_only_mount() {
    let daemon = Arc::new(Daemon::default());
    let ino = make(&*mount(&daemon).await, "a", b"data").await;
    let (fs, _) = mount_with(&daemon, Options { read_only: true, ..Options::default() }).await;
    assert_eq!(content(&fs, ino).await, b"data");
    let refused = [
        fs.open_file(ROOT, ino, libc::O_RDWR).await.map(drop),
        fs.setattr(ROOT, ino, Set { mode: Some(0), ..Set::default() }).await.map(drop),
        fs.remove(ROOT, Ino::ROOT, b"a", false).await,
        fs.set_xattr(ROOT, ino, b"user.x", b"", XattrMode::Set).await,
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    let room = fs.room().await.unwrap();
    assert_eq!((room.total, room.free, room.inodes, room.inodes_free), (3, 2, 3, 2));
}
