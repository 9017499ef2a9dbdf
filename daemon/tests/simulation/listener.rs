//! The part of a client that listens to its session's events: drops what others have changed, then says so.

use futures::StreamExt;
use std::time::Duration;
use tandemfs::api::fs::{Ack, Event};
use tandemfs::id::{Ino, SessionId};
use tokio::time::Instant;

use crate::client::{Called, Mount, stamp};
use crate::trace::{note, violate};

/// Listens as long as the session is the client's own.
pub async fn listen(mount: Mount, session: SessionId) {
    while is_mine(&mount, session) && !mount.world.trace.is_violated() {
        match mount.call("events", mount.parts.events(session)).await {
            Called::Answered(events) => follow(&mount, session, events).await,
            Called::Ended | Called::Refused(_) => {
                mount.client.state().ended(session);
                return;
            }
            Called::InDoubt => {}
        }
        mount.breathe(30).await;
    }
}

fn is_mine(mount: &Mount, session: SessionId) -> bool {
    mount.client.state().session.as_ref().is_some_and(|held| held.id == session && held.is_attached)
}

/// Carries out what one stream says, until it ends or is cut.
async fn follow(mount: &Mount, session: SessionId, events: crate::daemon::Events) {
    let mut events = events;
    while let Some(event) = events.next().await {
        if !is_mine(mount, session) {
            return;
        }
        if mount.client.state().random.chance(10) {
            note!(mount.world.trace, "client {}: its stream of events is cut", mount.client.number);
            return;
        }
        stall(mount).await;
        // The mount may be slow to drop what it has; what counts is that it is gone when it says so.
        let slow = {
            let mut state = mount.client.state();
            if state.random.chance(100) { state.random.below(400) } else { state.random.below(3) }
        };
        if slow > 1 {
            tokio::time::sleep(Duration::from_millis(slow)).await;
        }
        let (number, held) = carry_out(mount, session, &event);
        acknowledge(mount, session, number, held).await;
        if let Event::Recall { inos, volume, .. } = event {
            tokio::spawn(mount.clone().recalled(session, inos, volume));
        }
    }
}

/// A client that hangs does not answer events until it goes on.
async fn stall(mount: &Mount) {
    let until = mount.client.state().stalled;
    if let Some(until) = until {
        tokio::time::sleep_until(until).await;
    }
}

/// Drops what an event names. Returns its number, and which of the orphans the client holds open.
fn carry_out(mount: &Mount, of: SessionId, event: &Event) -> (u64, Vec<Ino>) {
    let mut state = mount.client.state();
    match event {
        Event::Changed { number, version, keys, orphans } => {
            // Who is shown a change has been told of it before, or sees a part of it in the cache.
            if let (Some((shown_to, shown, last)), Some(session)) = (state.shown, &state.session)
                && of == session.id
                && of == shown_to
                && last < *number
                && stamp(session, *version) <= shown
            {
                violate!(
                    mount.world.trace,
                    "client {} was shown version {version} before event {number}, which tells of it",
                    mount.client.number
                );
            }
            state.cache.drop_keys(keys);
            (*number, orphans.iter().copied().filter(|ino| state.held.contains_key(ino)).collect())
        }
        Event::Delegated { number, ino, .. } => {
            state.cache.drop_file(*ino);
            (*number, Vec::new())
        }
        Event::Recall { number, .. } => (*number, Vec::new()),
        Event::DropAll { number, .. } => {
            state.cache.drop_all();
            (*number, state.held.keys().copied().collect())
        }
        Event::Heartbeat { number } => (*number, Vec::new()),
    }
}

async fn acknowledge(mount: &Mount, session: SessionId, number: u64, held: Vec<Ino>) {
    for _ in 0..3 {
        let sent = Instant::now();
        match mount.call("ack", mount.parts.ack(session, Ack { number, held: held.clone() })).await {
            Called::Answered(()) => {
                mount.client.state().renewed(session, sent);
                return;
            }
            Called::Ended => {
                mount.client.state().ended(session);
                return;
            }
            _ => mount.breathe(5).await,
        }
    }
}
