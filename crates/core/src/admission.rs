//! Node-wide admission: how many steps may run at once, and whether a wake has room.

use std::collections::VecDeque;

use crate::Reason;

/// What kind of step asks to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimKind {
    /// A wake: comes first.
    Wake,
    /// A save to a snapshot that was ordered, or that the node's memory is short without.
    Save,
    /// A save to a snapshot that a policy wants: nobody waits for it.
    PolicySave,
    /// The making of a shell.
    Shell,
    /// A page-out.
    PageOut,
}

impl ClaimKind {
    /// Every kind, who comes first first.
    const ALL: [Self; 5] = [
        Self::Wake,
        Self::Save,
        Self::PolicySave,
        Self::Shell,
        Self::PageOut,
    ];

    /// Whether it brings memory in.
    const fn fills(self) -> bool {
        matches!(self, Self::Wake | Self::Shell)
    }
}

/// So many shells are made at once: they are made ahead of time, and whoever wakes meanwhile needs the CPU.
const SHELLS: usize = 1;

/// A step that asks to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Names the claim; unique within the agent's life.
    pub id: u64,
    /// What kind of step it is.
    pub kind: ClaimKind,
    /// For a wake or a shell, the bytes of RAM that the guest may need; 0 if its memory never left.
    pub bytes: u64,
}

/// How much may go on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Wakes at once.
    pub wakes: usize,
    /// Saves to snapshots at once. Those that a policy wants are within it; who waits for a save does not wait for them.
    pub saves: usize,
    /// Page-outs at once.
    pub page_outs: usize,
    /// Bytes of RAM that a wake must leave free.
    pub reserve: u64,
}

/// The node's memory now, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// `MemAvailable`.
    pub available: u64,
}

/// What becomes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may run now.
    Run,
    /// It has to wait for its turn.
    Wait,
    /// It cannot run.
    Refuse(Reason),
}

/// Who runs and who waits.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: AdmissionLimits,
    running: Vec<Claim>,
    waiting: VecDeque<Claim>,
}

impl Admission {
    /// Nobody runs, nobody waits.
    #[must_use]
    pub const fn new(limits: AdmissionLimits) -> Self {
        Self {
            limits,
            running: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// A step asks to run.
    ///
    /// A wake needs RAM for what its guest had resident, beside what the wakes under way are about to
    /// bring back; without it the wake is refused and the guest sleeps on. So does a shell, beside shells under way, too.
    pub fn ask(&mut self, claim: Claim, memory: Memory) -> Verdict {
        if claim.kind.fills() && claim.bytes > 0 {
            let promised: u64 = self
                .running
                .iter()
                // A shell has to make room for a wake.
                .filter(|c| c.kind == ClaimKind::Wake || c.kind.fills() && claim.kind != ClaimKind::Wake)
                .map(|c| c.bytes)
                .sum();
            let needed = claim
                .bytes
                .saturating_add(promised)
                .saturating_add(self.limits.reserve);
            if needed > memory.available {
                return Verdict::Refuse(Reason::InsufficientMemory);
            }
        }
        if self.has_room(claim.kind) {
            self.running.push(claim);
            Verdict::Run
        } else {
            self.waiting.push_back(claim);
            Verdict::Wait
        }
    }

    /// A step has ended, or a waiting one was called off; returns the claims that may run now.
    pub fn done(&mut self, id: u64) -> Vec<u64> {
        self.running.retain(|claim| claim.id != id);
        self.waiting.retain(|claim| claim.id != id);
        let mut admitted = Vec::new();
        for kind in ClaimKind::ALL {
            while self.has_room(kind) {
                let Some(position) = self.waiting.iter().position(|claim| claim.kind == kind) else {
                    break;
                };
                let Some(claim) = self.waiting.remove(position) else {
                    break;
                };
                admitted.push(claim.id);
                self.running.push(claim);
            }
        }
        admitted
    }

    /// How many steps run, and how many wait.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Whether one more step of this kind may run. All others also wait while any wake waits.
    fn has_room(&self, kind: ClaimKind) -> bool {
        let count = |kind| self.running.iter().filter(|claim| claim.kind == kind).count();
        let (running, limit) = match kind {
            ClaimKind::Wake => (count(kind), self.limits.wakes),
            ClaimKind::Save => (count(kind), self.limits.saves),
            ClaimKind::PolicySave => (count(ClaimKind::Save) + count(kind), self.limits.saves),
            ClaimKind::PageOut => (count(kind), self.limits.page_outs),
            ClaimKind::Shell => (count(kind), SHELLS),
        };
        let first = kind == ClaimKind::Wake || !self.waiting.iter().any(|c| c.kind == ClaimKind::Wake);
        running < limit && first
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn admission(wakes: usize, page_outs: usize) -> Admission {
        Admission::new(AdmissionLimits {
            wakes,
            page_outs,
            saves: 1,
            reserve: GIB,
        })
    }

    const ROOM: Memory = Memory { available: 64 * GIB };

    fn claim(id: u64, kind: ClaimKind) -> Claim {
        Claim { id, kind, bytes: GIB }
    }

    #[test]
    fn wakes_go_first() {
        let mut admission = admission(1, 1);
        assert_eq!(admission.ask(claim(1, ClaimKind::Wake), ROOM), Verdict::Run);
        assert_eq!(admission.ask(claim(2, ClaimKind::PageOut), ROOM), Verdict::Run);
        assert_eq!(admission.ask(claim(3, ClaimKind::PageOut), ROOM), Verdict::Wait);
        assert_eq!(admission.ask(claim(4, ClaimKind::Wake), ROOM), Verdict::Wait);
        assert_eq!(
            admission.done(2),
            [] as [u64; 0],
            "no page-out starts while a wake waits"
        );
        assert_eq!(admission.done(1), [4, 3]);
    }

    #[test]
    fn who_waits_for_a_save_does_not_wait_for_a_policys() {
        let mut admission = admission(1, 1);
        assert_eq!(admission.ask(claim(1, ClaimKind::PolicySave), ROOM), Verdict::Run);
        assert_eq!(
            admission.ask(claim(2, ClaimKind::PolicySave), ROOM),
            Verdict::Wait
        );
        assert_eq!(admission.ask(claim(3, ClaimKind::Save), ROOM), Verdict::Run);
        assert_eq!(admission.ask(claim(4, ClaimKind::Save), ROOM), Verdict::Wait);
        assert_eq!(
            admission.done(1),
            [] as [u64; 0],
            "one ordered save is as many as may run"
        );
        assert_eq!(admission.done(3), [4]);
        assert_eq!(admission.done(4), [2]);
    }

    #[test]
    fn a_wake_needs_room() {
        let mut admission = admission(8, 1);
        let memory = Memory { available: 3 * GIB };
        assert_eq!(admission.ask(claim(1, ClaimKind::Wake), memory), Verdict::Run);
        assert_eq!(admission.ask(claim(2, ClaimKind::Wake), memory), Verdict::Run);
        assert_eq!(
            admission.ask(claim(3, ClaimKind::Wake), memory),
            Verdict::Refuse(Reason::InsufficientMemory)
        );
        let resident = Claim {
            id: 4,
            kind: ClaimKind::Wake,
            bytes: 0,
        };
        assert_eq!(admission.ask(resident, Memory { available: 0 }), Verdict::Run);
        assert_eq!(
            admission.ask(claim(5, ClaimKind::Shell), memory),
            Verdict::Refuse(Reason::InsufficientMemory)
        );
    }

    #[test]
    fn a_wake_does_not_stand_back_for_a_shell() {
        let mut admission = admission(8, 1);
        let memory = Memory { available: 2 * GIB };
        assert_eq!(admission.ask(claim(1, ClaimKind::Shell), memory), Verdict::Run);
        let refused = Verdict::Refuse(Reason::InsufficientMemory);
        assert_eq!(admission.ask(claim(2, ClaimKind::Shell), memory), refused);
        assert_eq!(admission.ask(claim(3, ClaimKind::Wake), memory), Verdict::Run);
        assert_eq!(admission.ask(claim(4, ClaimKind::Wake), memory), refused);
    }

    proptest! {
        #[test]
        fn limits_hold_and_nobody_is_forgotten(
            asks in proptest::collection::vec((0_usize..ClaimKind::ALL.len(), any::<bool>()), 1..60),
        ) {
            let mut admission = admission(2, 1);
            let mut running = Vec::new();
            let mut waiting = Vec::new();
            for (id, (kind, finish)) in asks.iter().enumerate() {
                let kind = ClaimKind::ALL[*kind];
                let claim = claim(id as u64, kind);
                match admission.ask(claim, ROOM) {
                    Verdict::Run => running.push(claim),
                    _ => waiting.push(claim),
                }
                if *finish && !running.is_empty() {
                    let done = running.remove(0);
                    for admitted in admission.done(done.id) {
                        let at = waiting.iter().position(|c| c.id == admitted).unwrap();
                        running.push(waiting.remove(at));
                    }
                }
                prop_assert!(running.iter().filter(|c| c.kind == ClaimKind::Wake).count() <= 2);
                for kind in [ClaimKind::PageOut, ClaimKind::Save, ClaimKind::PolicySave, ClaimKind::Shell] {
                    prop_assert!(running.iter().filter(|c| c.kind == kind).count() <= 1);
                }
                prop_assert_eq!(admission.load(), (running.len(), waiting.len()));
            }
            while let Some(done) = running.pop() {
                for admitted in admission.done(done.id) {
                    let at = waiting.iter().position(|c| c.id == admitted).unwrap();
                    running.push(waiting.remove(at));
                }
            }
            prop_assert!(waiting.is_empty());
        }
    }
}
