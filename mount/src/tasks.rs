//! Where the kernel's calls run: first in the thread that has taken them in, then wherever what they wait for comes to pass, with
//! as few changes of the thread as can be. Each of those takes longer than most calls need.

use std::cell::RefCell;
use std::future::Future;

use async_task::Runnable;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

thread_local! {
    /// What was woken in this thread and goes on in it; `None` while that may not be.
    static HERE: RefCell<Option<Vec<Runnable>>> = const { RefCell::new(None) };
}

/// Runs a call: what can be answered at once right here, all else as a task of the runtime.
pub fn run(runtime: &Handle, call: impl Future<Output = ()> + Send + 'static) {
    let handle = runtime.clone();
    let schedule = move |woken: Runnable| {
        let elsewhere = HERE.with_borrow_mut(|here| match here {
            Some(here) => {
                here.push(woken);
                None
            }
            None => Some(woken),
        });
        if let Some(woken) = elsewhere {
            handle.spawn(async move { woken.run() });
        }
    };
    let (call, task) = async_task::spawn(call, schedule);
    task.detach();
    let _runtime = runtime.enter();
    call.run();
}

/// Does work that may block, in a thread of its own, in which the call that has waited for it then goes on. `None` if the runtime
/// has ended, or the work has panicked.
pub async fn block<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, outcome) = oneshot::channel();
    spawn_blocking(move || {
        let outcome = work();
        // Only what waits for this, and not what is woken by whoever goes on here: that may hold locks meanwhile.
        HERE.set(Some(Vec::new()));
        let _nobody_waits = done.send(outcome);
        for woken in HERE.take().unwrap_or_default() {
            woken.run();
        }
    });
    outcome.await.ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use tokio::runtime::{Builder, Runtime};
    use tokio::time::{sleep, timeout};

    use super::{block, run};

    const LONG: Duration = Duration::from_secs(10);

    fn runtime() -> Runtime {
        Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
    }

    /// The threads in which a call runs before and after it has waited.
    fn threads<T: Send + 'static>(wait: impl Future<Output = T> + Send + 'static) -> (ThreadId, ThreadId, T) {
        let (tell, told) = channel();
        let runtime = runtime();
        run(runtime.handle(), async move {
            let before = thread::current().id();
            let outcome = wait.await;
            tell.send((before, thread::current().id(), outcome)).unwrap();
        });
        told.recv_timeout(LONG).unwrap()
    }

    #[test]
    fn a_call_begins_where_it_was_taken_in_and_goes_on_where_its_work_was_done() {
        let here = thread::current().id();
        assert_eq!(threads(async {}), (here, here, ()));
        let (before, after, worked) = threads(block(|| thread::current().id()));
        assert_eq!((before, Some(after)), (here, worked));
        let (before, after, worked) =
            threads(async { timeout(LONG, block(|| thread::current().id())).await });
        assert_eq!((before, Ok(Some(after))), (here, worked));
    }

    #[test]
    fn a_call_that_waits_for_something_else_goes_on_in_the_runtime() {
        let (before, after, ()) = threads(async { sleep(Duration::from_millis(1)).await });
        assert_ne!(before, after);
        let (_, after, first) = threads(async {
            let first = block(|| thread::current().id()).await;
            sleep(Duration::from_millis(1)).await;
            first
        });
        assert_ne!(Some(after), first);
    }

    #[test]
    fn work_that_panics_or_is_not_waited_for_does_no_harm() {
        let (_, _, outcome) = threads(block(|| panic!("as the test wants")));
        assert_eq!(outcome, None::<()>);
        let (_, _, late) = threads(async {
            timeout(Duration::ZERO, block(|| thread::sleep(Duration::from_millis(50)))).await
        });
        assert!(late.is_err());
    }
}
