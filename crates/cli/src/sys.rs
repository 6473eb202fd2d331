//! The few system calls that no library of the workspace wraps.
#![allow(unsafe_code)]

use std::io;

/// What the kernel says about a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    /// It is there.
    Yes,
    /// The kernel lacks it.
    No,
    /// It is there, but this process may not use it.
    Forbidden,
}

/// Whether `process_madvise` is there. Nothing is advised: the process is none.
pub(crate) fn process_madvise() -> Support {
    // SAFETY: with a process descriptor of -1 and no ranges, the kernel touches no memory.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            -1,
            std::ptr::null::<libc::iovec>(),
            0_usize,
            libc::MADV_PAGEOUT,
            0_u32,
        )
    };
    if answer >= 0 {
        return Support::Yes;
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOSYS) => Support::No,
        Some(libc::EPERM) => Support::Forbidden,
        _ => Support::Yes,
    }
}

/// Whether the clock is kept by a time service; `None` if the kernel does not say.
pub(crate) fn clock_synchronised() -> Option<bool> {
    // SAFETY: `timex` is plain data, for which all zeroes is a value; `modes` 0 only reads.
    let state = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut timex)
    };
    match state {
        -1 => None,
        libc::TIME_ERROR => Some(false),
        _ => Some(true),
    }
}

/// The terminal's height in lines; `None` if the output is none.
pub(crate) fn terminal_lines() -> Option<u16> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes a `winsize` to the address, which is one.
    let answer = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (answer == 0 && size.ws_row > 0).then_some(size.ws_row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_answer() {
        assert_ne!(process_madvise(), Support::No);
        let _ = clock_synchronised();
        let _ = terminal_lines();
    }
}
