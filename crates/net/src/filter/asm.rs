//! A small assembler for classic BPF with labels.

use libc::{
    BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JEQ, BPF_JMP, BPF_JSET,
    BPF_K, BPF_LD, BPF_LDX, BPF_MEM, BPF_MISC, BPF_MSH, BPF_RET, BPF_RSH, BPF_ST, BPF_SUB, BPF_TAX, BPF_W,
    BPF_X,
};

/// One instruction of classic BPF, laid out as the kernel's `sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// How many instructions to skip if a conditional jump's condition holds.
    pub jt: u8,
    /// How many to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// A place in the program to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Collects instructions; jumps go forward only, to labels placed later.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<Instruction>,
    /// The instruction that each label stands before, once placed.
    places: Vec<Option<usize>>,
    /// Unconditional jumps to be filled in.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Puts `label` before the next instruction.
    pub(super) fn place(&mut self, label: Label) {
        let here = self.code.len();
        if let Some(place) = self.places.get_mut(label.0) {
            *place = Some(here);
        }
    }

    fn push(&mut self, code: u32, k: u32) {
        // Every operation code of classic BPF is below 256.
        let code = u16::try_from(code).unwrap_or(u16::MAX);
        self.code.push(Instruction {
            code,
            jt: 0,
            jf: 0,
            k,
        });
    }

    /// A = byte at `offset`.
    pub(super) fn load8(&mut self, offset: u32) {
        self.push(BPF_LD | BPF_B | BPF_ABS, offset);
    }

    /// A = two bytes at `offset`.
    pub(super) fn load16(&mut self, offset: u32) {
        self.push(BPF_LD | BPF_H | BPF_ABS, offset);
    }

    /// A = four bytes at `offset`; also the kernel's own values, at negative offsets.
    pub(super) fn load32(&mut self, offset: u32) {
        self.push(BPF_LD | BPF_W | BPF_ABS, offset);
    }

    /// A = byte at X + `offset`.
    pub(super) fn load8_x(&mut self, offset: u32) {
        self.push(BPF_LD | BPF_B | BPF_IND, offset);
    }

    /// A = two bytes at X + `offset`.
    pub(super) fn load16_x(&mut self, offset: u32) {
        self.push(BPF_LD | BPF_H | BPF_IND, offset);
    }

    /// X = 4 * (low half of the byte at `offset`): the length of an IPv4 header.
    pub(super) fn load_x_header(&mut self, offset: u32) {
        self.push(BPF_LDX | BPF_B | BPF_MSH, offset);
    }

    /// X = `value`.
    pub(super) fn load_x(&mut self, value: u32) {
        self.push(BPF_LDX | BPF_W | BPF_IMM, value);
    }

    /// Scratch word 0 = A.
    pub(super) fn store(&mut self) {
        self.push(BPF_ST, 0);
    }

    /// A = scratch word 0.
    pub(super) fn restore(&mut self) {
        self.push(BPF_LD | BPF_W | BPF_MEM, 0);
    }

    /// A += `value`.
    pub(super) fn add(&mut self, value: u32) {
        self.push(BPF_ALU | BPF_ADD | BPF_K, value);
    }

    /// A -= X, wrapping.
    pub(super) fn sub_x(&mut self) {
        self.push(BPF_ALU | BPF_SUB | BPF_X, 0);
    }

    /// A &= `mask`.
    pub(super) fn and(&mut self, mask: u32) {
        self.push(BPF_ALU | BPF_AND | BPF_K, mask);
    }

    /// A >>= `bits`.
    pub(super) fn shift_right(&mut self, bits: u32) {
        self.push(BPF_ALU | BPF_RSH | BPF_K, bits);
    }

    /// X = A.
    pub(super) fn a_to_x(&mut self) {
        self.push(BPF_MISC | BPF_TAX, 0);
    }

    /// Ends with `bytes` of the frame handed on; 0 drops it.
    pub(super) fn ret(&mut self, bytes: u32) {
        self.push(BPF_RET | BPF_K, bytes);
    }

    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(BPF_JMP | BPF_JA, 0);
    }

    /// A conditional jump reaches 255 instructions, an unconditional one everywhere; so a condition only
    /// ever skips the unconditional jump behind it.
    fn jump_if(&mut self, condition: u32, k: u32, to: Label, when: bool) {
        self.push(BPF_JMP | condition | BPF_K, k);
        if let Some(last) = self.code.last_mut() {
            (last.jt, last.jf) = if when { (0, 1) } else { (1, 0) };
        }
        self.jump(to);
    }

    pub(super) fn if_equal(&mut self, k: u32, to: Label) {
        self.jump_if(BPF_JEQ, k, to, true);
    }

    pub(super) fn if_not_equal(&mut self, k: u32, to: Label) {
        self.jump_if(BPF_JEQ, k, to, false);
    }

    pub(super) fn if_any_set(&mut self, mask: u32, to: Label) {
        self.jump_if(BPF_JSET, mask, to, true);
    }

    pub(super) fn if_none_set(&mut self, mask: u32, to: Label) {
        self.jump_if(BPF_JSET, mask, to, false);
    }

    /// The finished program. A label that was never placed leads to the next instruction; the tests see to
    /// it that none is.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        for (at, Label(label)) in self.jumps {
            let place = self.places.get(label).copied().flatten().unwrap_or(at + 1);
            debug_assert!(place > at, "a jump goes forward");
            if let Some(jump) = self.code.get_mut(at) {
                jump.k = u32::try_from(place.saturating_sub(at + 1)).unwrap_or(0);
            }
        }
        self.code
    }
}
