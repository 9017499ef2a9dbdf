//! Whether a signal waits for a thread that waits for us. fuser 0.18 does not pass FUSE_INTERRUPT on: it answers that there is no such
//! call, after which the kernel sends none any more and keeps the thread asleep until it is answered, even from SIGKILL. What
//! the kernel would have said stands in /proc.

use std::time::Duration;

use tokio::time::sleep;

/// How often it is looked for.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until a signal is pending for a thread (its number as the kernel tells it; 0 is one that cannot be seen from here).
pub(super) async fn pending(thread: u32) {
    let path = format!("/proc/{thread}/status");
    let mut before = false;
    loop {
        sleep(PAUSE).await;
        let status = if thread == 0 { None } else { std::fs::read_to_string(&path).ok() };
        let now = status.is_some_and(|status| is_pending(&status));
        // Twice, so that it is none that a running thread of the process takes.
        if before && now {
            return;
        }
        before = now;
    }
}

/// Whether a thread's `status` (proc_pid_status(5)) shows a signal that the thread has been woken for. One that was sent to the whole
/// process wakes its main thread unless that blocks it; a thread that is answered "interrupted" without having been woken would
/// return the kernel's own ERESTARTSYS to its program, so other threads are interrupted by their own signals alone (a
/// fatal one is every thread's own).
fn is_pending(status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mask = |name| field(name).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    let is_main = field("Tgid:").is_some_and(|group| Some(group) == field("Pid:"));
    let sent = mask("SigPnd:") | if is_main { mask("ShdPnd:") } else { 0 };
    sent & !mask("SigBlk:") != 0
}

#[cfg(test)]
mod tests {
    use super::is_pending;

    #[test]
    fn a_signal_counts_for_whom_the_kernel_wakes() {
        let status = |pid: u32, own: u64, shared: u64, blocked: u64| {
            is_pending(&format!(
                "Name:\tx\nTgid:\t7\nPid:\t{pid}\nTracerPid:\t0\nSigQ:\t1/9\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\n\
                 SigBlk:\t{blocked:016x}\nSigIgn:\t0000000000000000\n"
            ))
        };
        assert!(!status(7, 0, 0, 0));
        assert!(status(7, 0x200, 0, 0) && status(8, 0x200, 0, 0));
        assert!(status(7, 0, 0x4000, 0));
        assert!(!status(8, 0, 0x4000, 0), "it was the main thread that was woken");
        assert!(!status(7, 0x200, 0x4000, 0x4200));
        assert!(status(7, 0x200, 0x4000, 0x4000));
        assert!(!is_pending(""));
    }
}
