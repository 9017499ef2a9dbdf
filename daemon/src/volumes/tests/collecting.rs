//! Garbage collection beside writers.

use bytes::Bytes;
use futures::future::join_all;
use std::time::Duration;
use tandemfs::ErrorKind;
use tandemfs::block::Draft;
use tandemfs::id::BlockId;

use super::world::{World, create, unlink, write};
use crate::volumes::commit::Change;

#[tokio::test(start_paused = true)]
async fn a_block_that_is_used_again_is_not_collected() {
    let world = World::new().await;
    let volume = world.volume().await;
    let data = Bytes::from_static(b"used again and again");
    let block = BlockId::of(volume.key(), &data);
    volume.put_block(block, Draft::of(&data).unwrap()).await.unwrap();
    // Stored but never named: kept for the grace period.
    assert_eq!(world.collect().await.unwrap(), 0);
    world.clock.advance(59_000);
    volume.commit(Change::own(vec![create("a", 10), write(10, 0, 20, block)])).await.unwrap();
    world.clock.advance(600_000);
    assert_eq!(world.collect().await.unwrap(), 0);
    volume.commit(Change::own(vec![unlink("a")])).await.unwrap();
    world.clock.advance(59_000);
    assert_eq!(world.collect().await.unwrap(), 0);
    // Stored again: the time begins anew.
    volume.put_block(block, Draft::of(&data).unwrap()).await.unwrap();
    world.clock.advance(59_000);
    assert_eq!(world.collect().await.unwrap(), 0);
    world.clock.advance(2_000);
    assert_eq!(world.collect().await.unwrap(), 1);
    assert_eq!(world.objects().await, 0);
    let gone = volume.commit(Change::own(vec![create("b", 11), write(11, 0, 20, block)])).await.unwrap_err();
    assert_eq!((gone.kind(), gone.subject()), (ErrorKind::NotFound, "block"));
}

#[tokio::test(start_paused = true)]
async fn collection_never_takes_a_block_from_a_writer() {
    let world = World::new().await;
    world.switches.delay(Duration::from_micros(50), Duration::from_millis(1));
    let volume = world.volume().await;
    let datas: Vec<Bytes> =
        (0..6).map(|number| Bytes::from(vec![number; 1000 + usize::from(number)])).collect();
    let writers = datas.iter().enumerate().map(|(number, data)| {
        let volume = volume.clone();
        let block = BlockId::of(volume.key(), data);
        async move {
            for round in 0..40_u64 {
                let (text, ino) = (format!("w{number}"), 1000 * (number as u64 + 1) + round);
                // What is collected between the two is stored again, as a mount does it.
                loop {
                    volume.put_block(block, Draft::of(data).unwrap()).await.unwrap();
                    let batch = vec![create(&text, ino), write(ino, 0, data.len() as u64, block)];
                    match volume.commit(Change::own(batch)).await {
                        Ok(_) => break,
                        Err(error) => assert_eq!(error.subject(), "block"),
                    }
                }
                tokio::time::sleep(Duration::from_millis(number as u64 % 3)).await;
                let got = volume.get_block(block, 0..data.len() as u32).await.unwrap();
                assert_eq!(got, *data);
                volume.commit(Change::own(vec![unlink(&text)])).await.unwrap();
                tokio::time::sleep(Duration::from_millis(round % 3 * 40)).await;
            }
        }
    });
    let collector = async {
        let mut collected = 0;
        for _ in 0..400 {
            world.clock.advance(31_000);
            collected += world.collect().await.unwrap();
            tokio::time::sleep(Duration::from_micros(700)).await;
        }
        collected
    };
    let (_, collected) = futures::join!(join_all(writers), collector);
    assert!(collected > 6, "the collector had nothing to do: {collected}");
    world.clock.advance(120_000);
    world.collect().await.unwrap();
    assert_eq!(world.objects().await, 0);
    assert_eq!(world.volumes.usage(world.caller.home).await.unwrap().bytes, 0);
}
