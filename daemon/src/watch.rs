//! A value that others wait for: like `tokio::sync::watch`, but those who wait are woken in the order in which they came.
//!
//! tokio's own wakes them in an order that it draws from the system's randomness, and a simulation could not repeat a run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The sender is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

#[derive(Debug)]
struct Shared<T> {
    value: Mutex<Value<T>>,
    open: AtomicBool,
    changed: Notify,
}

#[derive(Debug)]
struct Value<T> {
    value: T,
    version: u64,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Value<T>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes the value.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// Waits for changes.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// A value with one who waits.
pub(crate) fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// A value for which nobody waits yet.
    pub(crate) fn new(value: T) -> Self {
        let value = Mutex::new(Value { value, version: 0 });
        Self(Arc::new(Shared { value, open: AtomicBool::new(true), changed: Notify::new() }))
    }

    /// One more who waits; what the value is now counts as seen.
    pub(crate) fn subscribe(&self) -> Receiver<T> {
        Receiver { shared: Arc::clone(&self.0), seen: self.0.lock().version }
    }

    /// Looks at the value.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.0.lock().value)
    }

    /// Changes the value and wakes all who wait, if `change` says that it has.
    pub(crate) fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut value = self.0.lock();
        let changed = change(&mut value.value);
        value.version += u64::from(changed);
        drop(value);
        if changed {
            self.0.changed.notify_waiters();
        }
        changed
    }

    /// Changes the value and wakes all who wait.
    pub(crate) fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Puts another value in its place and wakes all who wait.
    pub(crate) fn send_replace(&self, value: T) -> T {
        let mut before = value;
        self.send_modify(|value| std::mem::swap(value, &mut before));
        before
    }
}

impl<T: Copy> Sender<T> {
    /// The value.
    pub(crate) fn get(&self) -> T {
        self.look(|value| *value)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.open.store(false, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Receiver<T> {
    /// What the value is now counts as seen.
    pub(crate) fn mark_unchanged(&mut self) {
        self.seen = self.shared.lock().version;
    }

    /// Waits until the value is another than that which was seen.
    ///
    /// # Errors
    /// The sender is gone.
    pub(crate) async fn changed(&mut self) -> Result<(), Closed> {
        let shared = Arc::clone(&self.shared);
        loop {
            let mut change = std::pin::pin!(shared.changed.notified());
            change.as_mut().enable();
            let version = shared.lock().version;
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if !shared.open.load(Ordering::SeqCst) {
                return Err(Closed);
            }
            change.await;
        }
    }
}

impl<T: Clone> Receiver<T> {
    /// Waits until the value is as `wanted` says; that value.
    ///
    /// # Errors
    /// The sender is gone.
    pub(crate) async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<T, Closed> {
        let shared = Arc::clone(&self.shared);
        loop {
            let mut change = std::pin::pin!(shared.changed.notified());
            change.as_mut().enable();
            let is_open = shared.open.load(Ordering::SeqCst);
            {
                let value = shared.lock();
                self.seen = value.version;
                if wanted(&value.value) {
                    return Ok(value.value.clone());
                }
            }
            if !is_open {
                return Err(Closed);
            }
            change.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Closed, Sender, channel};
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn changes_wake_in_the_order_of_the_waits() {
        let sender = Arc::new(Sender::new(0));
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..20 {
            let (mut receiver, order) = (sender.subscribe(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                assert_eq!(receiver.wait_for(|value| *value == 7).await, Ok(7));
                order.lock().unwrap().push(number);
            }));
        }
        tokio::task::yield_now().await;
        sender.send_replace(7);
        futures::future::join_all(tasks).await;
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_is_seen_once_and_the_end_is_told() {
        let (sender, mut receiver) = channel(1);
        sender.send_modify(|value| *value += 1);
        assert!(!sender.send_if_modified(|_| false));
        assert_eq!(receiver.changed().await, Ok(()));
        sender.send_replace(3);
        receiver.mark_unchanged();
        drop(sender);
        assert_eq!(receiver.changed().await, Err(Closed));
        assert_eq!(receiver.wait_for(|value| *value == 3).await, Ok(3));
    }
}
