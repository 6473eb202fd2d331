//! The filter that runs in the kernel, one classic BPF program per mode and pod.
//!
//! It exists so that a frame that means nothing costs no wake-up of the loop; what a frame means is for
//! [`classify`](crate::classify()) alone to say. So a program may let too much through, and must never drop
//! what the classifier would act upon in that mode: the tests run both on the same frames.

mod asm;
mod program;

pub use asm::Instruction;
pub(crate) use program::wants_whole_frames;
pub use program::{SNAP_LENGTH, drop_all, program};
