//! What the allocator keeps of memory that is freed.
//!
//! glibc gives each thread an arena of its own, up to eight for a processor, and learns from the first large block that is freed
//! to take blocks of that size out of the arenas, which hold on to twice as much each. An agent that has hashed some images would
//! keep megabytes of buffers for as long as it runs. Here large blocks come from the kernel and go back to it, at the price of
//! a system call and of pages that are zeroed anew, which beside a hash of them weigh nothing.

use std::ffi::c_int;

/// Blocks of this many bytes and more are the kernel's: glibc's own first value, which it does not change any more once it is
/// set.
const LARGE: c_int = 128 << 10;

/// Arenas, for as many workers as there are; the blocking threads share them.
const ARENAS: c_int = 2;

/// Has freed memory go back. To be called before the first thread.
///
/// See `mallopt(3)`. A C library that does not know one of these goes on as it would.
pub fn keep_little() {
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_ARENA_MAX, ARENAS)] {
        // SAFETY: takes two numbers, and no other thread allocates at this time.
        #[allow(unsafe_code)]
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}
