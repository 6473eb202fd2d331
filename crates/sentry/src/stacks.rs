//! Whether the guest is stopped, read out of the sentry's own stack dump.
//!
//! Pauses are counted in the sentry, the count cannot be asked for, and one Resume too many panics it. But
//! a stopped task's goroutine waits in `kernel.(*Task).doStop`, and that can be seen from outside without
//! changing anything. The dump is taken with the world stopped, so it is one consistent picture.

/// What a stack dump shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopState {
    /// Some task runs, or waits in a system call: no Pause is in force.
    Running,
    /// Every task is stopped.
    Paused,
    /// A Pause or Resume is on its way; look again.
    Moving,
    /// The dump shows no tasks at all (the guest is not started, or has ended), or is no dump.
    Unknown,
}

/// A dump, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picture {
    /// Whether the guest is stopped.
    pub state: StopState,
    /// Whether some connection of the control socket is waited on for its next request. It may be idle, or
    /// hold a request that the sentry was about to read: after some milliseconds it is idle.
    pub connection_open: bool,
}

/// The function in which a stopped task's goroutine waits.
const DO_STOP: &str = "/pkg/sentry/kernel.(*Task).doStop(";
/// The outermost function of every task's goroutine.
const TASK_RUN: &str = "/pkg/sentry/kernel.(*Task).run(";
const KERNEL_PAUSE: &str = "/pkg/sentry/kernel.(*Kernel).Pause(";
const CALL_PAUSE: &str = "/runsc/boot.(*containerManager).Pause(";
const CALL_RESUME: &str = "/runsc/boot.(*containerManager).Resume(";
/// What handles one connection of the control socket, outermost.
const CONNECTION: &str = "/pkg/urpc.(*Server).StartHandling.func1(";
/// What ends a dump that was too large for the sentry to take whole.
const TRUNCATED: &str = "<too large, truncated>";
/// Inside a call of a connection; a connection that is not inside one has a request before it, or none.
const CALL: &str = "reflect.Value.Call(";

/// Reads a dump in the form of Go's `runtime.Stack(all)`.
///
/// A task can also wait in `doStop` by itself: after `SIGSTOP`, under ptrace, or in `vfork`. Only a guest in
/// which *every* task does so, the pod's own pause process included, would look paused without being so.
#[must_use]
pub fn read(dump: &str) -> Picture {
    let mut tasks = 0_usize;
    let mut stopped = 0_usize;
    let mut leaving = 0_usize;
    let mut pausing = false;
    let mut moving = false;
    let mut connection_open = false;
    for goroutine in dump.split("\n\n") {
        let Some((head, frames)) = goroutine.trim_start().split_once('\n') else {
            continue;
        };
        let Some(state) = head
            .strip_prefix("goroutine ")
            .and_then(|h| h.split_once('['))
            .map(|(_, s)| s)
        else {
            continue;
        };
        if frames.contains(TASK_RUN) {
            tasks += 1;
            if frames.contains(DO_STOP) {
                if state.starts_with("sync.Cond.Wait") {
                    stopped += 1;
                } else {
                    // On its way into the stop or out of it.
                    leaving += 1;
                }
            }
        } else if frames.contains(CALL_PAUSE) {
            // The count is up from the moment that it waits for the tasks' goroutines.
            if frames.contains(KERNEL_PAUSE) && frames.contains("sync.(*WaitGroup).Wait(") {
                pausing = true;
            } else {
                moving = true;
            }
        } else if frames.contains(CALL_RESUME) {
            moving = true;
        } else if frames.contains(CONNECTION) && !frames.contains(CALL) {
            connection_open = true;
        }
    }
    let state = if tasks == 0 || dump.ends_with(TRUNCATED) {
        StopState::Unknown
    } else if moving {
        StopState::Moving
    } else if pausing || stopped == tasks {
        StopState::Paused
    } else if stopped + leaving == tasks {
        StopState::Moving
    } else {
        StopState::Running
    };
    Picture {
        state,
        connection_open,
    }
}

#[cfg(test)]
mod tests {
    use super::{Picture, StopState, read as read_all};
    use proptest::prelude::*;

    const RUN: &str = "gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).run(0x1, 0x1)\n\tx.go:1\n";
    const STOP: &str = "gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).doStop(0x1)\n\tx.go:1\n";

    fn read(dump: &str) -> StopState {
        read_all(dump).state
    }

    fn task(state: &str, stopped: bool) -> String {
        format!(
            "goroutine 7 [{state}]:\n{}{RUN}\n",
            if stopped { STOP } else { "" }
        )
    }

    #[test]
    fn tells_running_from_paused() {
        let (s, r) = (task("sync.Cond.Wait, 2 minutes", true), task("select", false));
        assert_eq!(read(&s), StopState::Paused);
        assert_eq!(read(&format!("{s}{s}")), StopState::Paused);
        assert_eq!(read(&format!("{s}{r}")), StopState::Running);
        assert_eq!(read(&r), StopState::Running);
        assert_eq!(read(&format!("{s}{}", task("runnable", true))), StopState::Moving);
        assert_eq!(read(""), StopState::Unknown);
        assert_eq!(read("goroutine 1 [running]:\nmain.main()\n"), StopState::Unknown);
    }

    #[test]
    fn a_request_on_its_way_is_waited_for() {
        let s = task("sync.Cond.Wait", true);
        let paused = |connection_open| Picture {
            state: StopState::Paused,
            connection_open,
        };
        let connection = "gvisor.dev/gvisor/pkg/urpc.(*Server).StartHandling.func1()\n\tx.go:1\n";
        let reading = format!("goroutine 8 [syscall]:\n{connection}\n");
        assert_eq!(read_all(&format!("{s}{reading}")), paused(true));
        let other = format!("goroutine 8 [running]:\nreflect.Value.Call(0x1)\n\tx.go:1\n{connection}\n");
        assert_eq!(read_all(&format!("{s}{other}")), paused(false));
        let resume = format!(
            "goroutine 8 [running]:\ngvisor.dev/gvisor/runsc/boot.(*containerManager).Resume(0x1)\n\tx\nreflect.Value.Call(0x1)\n\tx.go:1\n{connection}\n"
        );
        assert_eq!(read(&format!("{s}{resume}")), StopState::Moving);
    }

    #[test]
    fn a_pause_that_waits_counts_already() {
        let stuck = "goroutine 8 [sync.WaitGroup.Wait]:\nsync.(*WaitGroup).Wait(0x1)\n\tx\ngvisor.dev/gvisor/pkg/sentry/kernel.(*Kernel).Pause(0x1)\n\tx\ngvisor.dev/gvisor/runsc/boot.(*containerManager).Pause(0x1)\n\tx\n\n";
        assert_eq!(
            read(&format!("{stuck}{}", task("select", false))),
            StopState::Paused
        );
    }

    proptest! {
        #[test]
        fn anything_else_never_counts_as_paused(s in "\\PC{0,400}") {
            prop_assert_eq!(read(&s), StopState::Unknown);
        }
    }
}
