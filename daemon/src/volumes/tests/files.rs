//! Files as people see them.

use std::time::Duration;
use tandemfs::ErrorKind;
use tandemfs::api::files::ListFiles;
use tandemfs::id::{FileId, Ino};
use tandemfs::tree::{Mutation, NewNode, SetAttributes, Want};

use super::world::{ROOT_USER, World, create_in, name, time, unlink};
use crate::settings::Settings;
use crate::volumes::commit::Change;
use crate::volumes::files::Preconditions;

fn bytes(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_file_comes_back_as_it_went_in() {
    let world = World::new().await;
    let data = bytes(7, 11_000_000);
    let id = world.upload("a/b/c.bin", &data).await.unwrap();
    assert_eq!(world.download(&id, 0..11_000_000).await.unwrap(), data);
    for range in [0..1, 4_194_303..4_194_305, 5_000_000..9_999_999, 10_999_999..11_000_000] {
        let (from, to) = (range.start as usize, range.end as usize);
        assert_eq!(world.download(&id, range).await.unwrap(), data[from..to]);
    }
    let detail = world.volumes.stat(&world.caller, &id).await.unwrap();
    assert_eq!((detail.file.path.as_str(), detail.file.size), ("/a/b/c.bin", 11_000_000));
    assert_eq!(detail.blocks.iter().map(|block| block.length).sum::<u64>(), 11_000_000);
    assert!(detail.blocks.iter().all(|block| block.replicas.len() == 2));
    assert_eq!(detail.file.replicas, 2);
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&data));
    assert_eq!(detail.file.sha256, Some(sha256));
    assert_eq!(world.upload("a/b/c.bin", b"x").await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(world.upload("a/b", b"x").await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(world.upload("a/b/c.bin/d", b"x").await.unwrap_err().kind(), ErrorKind::NotADirectory);
    let empty = world.upload("empty", b"").await.unwrap();
    assert_eq!(world.download(&empty, 0..0).await.unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn holes_are_zeros() {
    let world = World::new().await;
    let data = bytes(9, 100_000);
    let id = world.upload("sparse", &data).await.unwrap();
    let ino = id.parse::<FileId>().unwrap().ino;
    let set = SetAttributes { size: Some(20_000_000), ..SetAttributes::default() };
    let grow = Mutation::SetAttributes { ino, set, by: ROOT_USER, time: time(5) };
    world.volume().await.commit(Change::own(vec![grow])).await.unwrap();
    let got = world.download(&id, 0..20_000_000).await.unwrap();
    assert_eq!(got.len(), 20_000_000);
    assert_eq!(got[..100_000], data);
    assert!(got[100_000..].iter().all(|byte| *byte == 0));
    assert_eq!(world.download(&id, 99_999..100_001).await.unwrap(), [data[99_999], 0]);
    // The digest of what it was is forgotten, and computed anew when it is asked for.
    let sha256 = world.volumes.stat(&world.caller, &id).await.unwrap().file.sha256.unwrap();
    assert_eq!(sha256, hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&got)));
    let inode = world.volume().await.query(|set| set.inode(ino)).await.unwrap();
    assert_eq!(inode.sha256.map(hex::encode), Some(sha256));
}

#[tokio::test(start_paused = true)]
async fn a_failed_upload_leaves_nothing() {
    let settings = Settings { max_file_size: 5_000_000, ..Settings::default() };
    let world = World::with(settings, Some(20_000_000)).await;
    assert_eq!(world.upload("large", &bytes(1, 6_000_000)).await.unwrap_err().kind(), ErrorKind::TooLarge);
    {
        let mut upload = world
            .volumes
            .upload(&world.caller, vec![name("given up")], Preconditions::default())
            .await
            .unwrap();
        upload.write(bytes(2, 4_500_000).into()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let page = world.volumes.list(&world.caller, &ListFiles::default()).await.unwrap();
    assert!(page.files.is_empty());
    assert_eq!(world.volumes.usage(world.caller.home).await.unwrap().bytes, 0);
    world.clock.advance(1_000_000);
    world.collect().await.unwrap();
    assert_eq!(world.objects().await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_is_gone_after_collection() {
    let world = World::new().await;
    let id = world.upload("d/f", b"something").await.unwrap();
    let ino = id.parse::<FileId>().unwrap().ino;
    let link = Mutation::Link { ino, parent: Ino::ROOT, name: name("second"), time: time(6) };
    world.volume().await.commit(Change::own(vec![link])).await.unwrap();
    let stale = Preconditions { if_match: Some("\"other\"".to_owned()), if_none_match: None };
    let refused = world.volumes.delete(&world.caller, &id, &stale).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Stale);
    world.delete(&id).await.unwrap();
    assert_eq!(world.delete(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.volumes.stat(&world.caller, &id).await.unwrap_err().kind(), ErrorKind::NotFound);
    let usage = world.volumes.usage(world.caller.home).await.unwrap();
    assert_eq!((usage.bytes, usage.inodes), (0, 1));
    assert_eq!(world.collect().await.unwrap(), 0);
    world.clock.advance(61_000);
    assert_eq!(world.collect().await.unwrap(), 1);
    assert_eq!(world.objects().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_deleted_while_it_is_read_is_read_to_its_end() {
    use futures::StreamExt;
    let world = World::new().await;
    let data = bytes(3, 9_000_000);
    let id = world.upload("f", &data).await.unwrap();
    let download = world.volumes.download(&world.caller, &id).await.unwrap();
    let mut pieces = world.volumes.read(&download, 0..9_000_000).await.unwrap();
    let mut got = pieces.next().await.unwrap().unwrap().to_vec();
    world.delete(&id).await.unwrap();
    world.clock.advance(61_000);
    world.collect().await.unwrap();
    while let Some(piece) = pieces.next().await {
        got.extend(piece.unwrap());
    }
    assert_eq!(got, data);
    drop(pieces);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.volumes.usage(world.caller.home).await.unwrap().bytes, 0);
    world.clock.advance(61_000);
    world.collect().await.unwrap();
    assert_eq!(world.objects().await, 0);
}

#[tokio::test(start_paused = true)]
async fn ids_of_what_is_no_file_of_the_caller_are_all_the_same() {
    let world = World::new().await;
    let volume = world.volume().await;
    let symlink = NewNode::Symlink(b"/etc/passwd".to_vec());
    let batch = vec![
        create_in(Ino::ROOT, "d", 50, NewNode::Directory),
        create_in(Ino::ROOT, "l", 51, symlink),
        create_in(Ino::ROOT, "p", 52, NewNode::Fifo),
        create_in(Ino::ROOT, "gone", 53, NewNode::File),
        unlink("gone"),
    ];
    volume.commit(Change::own(batch)).await.unwrap();
    let home = world.caller.home.0;
    let mut ids: Vec<String> = [1, 50, 51, 52, 53, 99].map(|ino| format!("f{home:x}-{ino:x}")).into();
    ids.extend(["f999-32".to_owned(), "nonsense".to_owned(), "f01-2".to_owned(), String::new()]);
    for id in ids {
        let error = world.volumes.stat(&world.caller, &id).await.unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::NotFound, "file"), "{id}");
        let error = world.volumes.download(&world.caller, &id).await.unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::NotFound, "file"), "{id}");
        let error = world.delete(&id).await.unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::NotFound, "file"), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn lists_have_every_file_once_in_order() {
    let world = World::new().await;
    let volume = world.volume().await;
    let (mut ino, mut expected) = (100, Vec::new());
    for directory in 0..20_u64 {
        let directory_ino = 10 + directory;
        let text = format!("d{directory:02}");
        let mut batch = vec![create_in(Ino::ROOT, &text, directory_ino, NewNode::Directory)];
        for number in 0..150 {
            batch.push(create_in(Ino(directory_ino), &format!("f{number:03}"), ino, NewNode::File));
            expected.push(format!("/{text}/f{number:03}"));
            ino += 1;
        }
        // A second link is not another file.
        let link = Mutation::Link {
            ino: Ino(ino - 1),
            parent: Ino::ROOT,
            name: name(&format!("x{directory}")),
            time: time(1),
        };
        batch.push(link);
        volume.commit(Change::own(batch)).await.unwrap();
    }
    for (prefix, limit) in [
        (None, 1000),
        (None, 7),
        (Some("/d1"), 13),
        (Some("d07/f14"), 3),
        (Some("d07/"), 100),
        (Some("no"), 5),
    ] {
        let mut found = Vec::new();
        let mut list = ListFiles { limit: Some(limit), cursor: None, prefix: prefix.map(str::to_owned) };
        loop {
            let page = world.volumes.list(&world.caller, &list).await.unwrap();
            assert!(page.files.len() <= limit as usize);
            found.extend(page.files.into_iter().map(|file| file.path));
            list.cursor = page.next_cursor;
            if list.cursor.is_none() {
                break;
            }
        }
        let prefix = format!("/{}", prefix.unwrap_or_default().trim_start_matches('/'));
        let wanted: Vec<&String> = expected.iter().filter(|path| path.starts_with(&prefix)).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), wanted, "{prefix} {limit}");
    }
    for bad in [
        ListFiles { limit: Some(0), ..ListFiles::default() },
        ListFiles { limit: Some(1001), ..ListFiles::default() },
        ListFiles { cursor: Some("?".to_owned()), ..ListFiles::default() },
        ListFiles { cursor: Some("Lw".to_owned()), ..ListFiles::default() },
    ] {
        assert_eq!(world.volumes.list(&world.caller, &bad).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    let links = volume.read(None, &[Want::Links(Ino(ino - 1))]).await.unwrap().answers.remove(0);
    assert_eq!(links.records.len(), 1);
}
