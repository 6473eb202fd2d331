//! Gives one batch of advice, whatever single ranges answer.

use std::io;

use crate::kernel::{Advice, Kernel, Process, Range};

/// How often one batch is offered again to a kernel that is short of something (`EAGAIN`, `EINTR`).
const ATTEMPTS: u32 = 3;

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Advised {
    /// Address space that the kernel took the advice on, in bytes.
    pub bytes: u64,
    /// Kernel calls made.
    pub calls: u64,
    /// Ranges that the kernel refused (unmapped meanwhile, locked, device memory).
    pub refused: u64,
    /// The process was gone.
    pub gone: bool,
}

/// Advises on every range that the kernel takes, and passes over those that it refuses one by one.
///
/// # Errors
/// What concerns the process or the kernel as a whole: `EPERM`, `ENOSYS`, `EBADF`, …
pub fn advise<K: Kernel + ?Sized>(
    kernel: &K,
    process: &Process,
    ranges: &[Range],
    advice: Advice,
) -> io::Result<Advised> {
    let mut result = Advised::default();
    let mut left = ranges.to_vec();
    let mut attempts = 0;
    while !left.is_empty() {
        result.calls += 1;
        match kernel.advise(process, &left, advice) {
            Ok(bytes) => {
                result.bytes += bytes;
                attempts = 0;
                let before = left.len();
                drop_front(&mut left, bytes);
                // A short count: the range now in front was refused, or advised in part only. A count that covers
                // nothing must not be offered for ever.
                if !left.is_empty() && (bytes == 0 || left.len() == before) {
                    result.refused += 1;
                    left.remove(0);
                }
            }
            Err(e) => match e.raw_os_error() {
                Some(libc::ESRCH) => {
                    result.gone = true;
                    return Ok(result);
                }
                Some(libc::EAGAIN | libc::EINTR) if attempts < ATTEMPTS => attempts += 1,
                // Only the range in front: unmapped, locked or not ordinary memory; or the kernel could not get
                // at its file. The others stand.
                Some(libc::EINVAL | libc::ENOMEM | libc::EAGAIN | libc::EINTR | libc::EIO | libc::EFAULT) => {
                    attempts = 0;
                    result.refused += 1;
                    left.remove(0);
                }
                _ => return Err(e),
            },
        }
    }
    Ok(result)
}

/// Takes `bytes` off the front of the list.
fn drop_front(ranges: &mut Vec<Range>, mut bytes: u64) {
    let mut whole = 0;
    for range in ranges.iter_mut() {
        if bytes < range.len {
            range.start += bytes;
            range.len -= bytes;
            break;
        }
        bytes -= range.len;
        whole += 1;
    }
    ranges.drain(..whole);
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::kernel::fake::Fake;

    fn ranges(n: u64) -> Vec<Range> {
        (0..n)
            .map(|i| Range {
                start: 0x10_0000 + i * 0x10_0000,
                len: 0x1_0000,
            })
            .collect()
    }

    fn process() -> Process {
        Process {
            pid: 7,
            fd: File::open("/dev/null").unwrap().into(),
        }
    }

    #[test]
    fn passes_over_refused_ranges() {
        for errno in [libc::EINVAL, libc::ENOMEM, libc::EAGAIN, libc::EINTR] {
            let fake = Fake::default();
            let all = ranges(10);
            fake.refuse(all[0], errno);
            fake.refuse(all[4], errno);
            fake.refuse(all[9], errno);
            let done = advise(&fake, &process(), &all, Advice::PageOut).unwrap();
            assert_eq!(done.refused, 3);
            assert_eq!(done.bytes, 7 * 0x1_0000);
            assert_eq!(fake.advised().len(), 7);
        }
    }

    #[test]
    fn a_process_that_is_gone_is_no_error() {
        let fake = Fake::default();
        fake.refuse(ranges(1)[0], libc::ESRCH);
        assert!(
            advise(&fake, &process(), &ranges(3), Advice::PageOut)
                .unwrap()
                .gone
        );
    }

    #[test]
    fn no_permission_is_one() {
        let fake = Fake::default();
        fake.refuse(ranges(2)[1], libc::EPERM);
        let e = advise(&fake, &process(), &ranges(3), Advice::PageOut).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn a_kernel_that_does_nothing_is_not_asked_for_ever() {
        let fake = Fake::default();
        fake.partial(0);
        let done = advise(&fake, &process(), &ranges(5), Advice::PageOut).unwrap();
        assert_eq!((done.bytes, done.refused), (0, 5));
    }
}
