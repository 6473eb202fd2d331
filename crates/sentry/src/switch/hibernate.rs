//! The record's part of a hibernation: what is noted before each step, so that whoever comes after a crash knows whether
//! the guest or its snapshot is the one that counts.
//!
//! | noted | guest | snapshot | who comes after a crash |
//! |---|---|---|---|
//! | nothing | there | perhaps | the guest counts |
//! | `Releasing` | there and stopped, or gone | durable, exact | keeps a guest that is there, else goes on |
//! | `Released` | gone | durable | restores |
//! | `Restoring` | parts of a new one | durable | ends the parts, then restores |
//!
//! Of a pod that is `Released` a shell may be noted: an empty guest, all of it or, without its sentry, parts. Whoever comes
//! after a crash keeps one that is whole and ends the parts of any other; the snapshot is not touched by either.

use fail::fail_point;

use super::{Held, SwitchError};
use crate::control::{ImageFiles, ZeroPages};
use crate::ids::ContainerId;
use crate::record::{CgroupState, Hibernation, HibernationPhase, Shell, SwitchState};
use std::time::{Duration, Instant};

impl Held {
    /// Saves the stopped guest into the files of an image, over the control socket.
    ///
    /// # Errors
    /// [`SwitchError::NotPaused`] where it runs; [`SwitchError`]. The guest is as before.
    pub fn checkpoint(
        &mut self,
        image: &ImageFiles<'_>,
        zeros: ZeroPages,
        timeout: Duration,
    ) -> Result<(), SwitchError> {
        if !self.record.switch.paused || self.record.switch.intent.is_some() {
            return Err(SwitchError::NotPaused {
                sandbox: self.switch.id.clone(),
            });
        }
        let (_, socket) = self.locate()?;
        fail_point!("switch::checkpoint::before_call");
        socket.checkpoint(image, zeros, Instant::now() + timeout)?;
        fail_point!("switch::checkpoint::after_call");
        Ok(())
    }

    /// Notes that the guest is about to be ended because the snapshot holds it; keeps its last answers.
    ///
    /// # Errors
    /// [`SwitchError`]; nothing is noted then.
    pub fn begin_release(&mut self, snapshot: &str) -> Result<(), SwitchError> {
        if self.record.switch.cgroup == CgroupState::Thawed {
            // A sentry that is frozen itself gave them when that was done, and cannot answer now.
            self.capture()?;
        }
        let snapshot = snapshot.to_owned();
        self.update(|r| {
            let live = r.containers.iter().filter(|c| c.is_live());
            let containers = live.map(|c| c.id.clone()).collect();
            let runsc = Some(r.runsc.clone());
            r.hibernation = Some(Hibernation {
                snapshot,
                phase: HibernationPhase::Releasing,
                containers,
                runsc,
                shell: None,
            });
        })?;
        fail_point!("switch::release::noted");
        Ok(())
    }

    /// Takes that back: the guest is there and counts.
    ///
    /// # Errors
    /// [`SwitchError::Record`]
    pub fn abandon_release(&mut self) -> Result<(), SwitchError> {
        Ok(self.update(|r| r.hibernation = None)?)
    }

    /// Notes that a guest which was saved, and stays stopped, is about to hear the wire again: what was saved is not what
    /// it is any more. Counted as a wake is, so that nobody who comes after a crash takes it for exact.
    ///
    /// # Errors
    /// [`SwitchError::Record`]
    pub fn note_heard(&mut self) -> Result<(), SwitchError> {
        Ok(self.update(|r| r.switch.wakes = r.switch.wakes.wrapping_add(1))?)
    }

    /// Notes how far the hibernation is. From `Restoring` on a shell is one of the new guest's parts.
    ///
    /// # Errors
    /// [`SwitchError::Record`]
    pub fn note_phase(&mut self, phase: HibernationPhase) -> Result<(), SwitchError> {
        self.update(|r| {
            if let Some(hibernation) = &mut r.hibernation {
                hibernation.phase = phase;
                hibernation.shell = None;
            }
            if phase == HibernationPhase::Released {
                r.switch.cgroup = CgroupState::Thawed;
                r.switch.rung = dormouse_core::Rung::Hibernated;
            }
        })?;
        fail_point!("switch::hibernation::phase_noted");
        Ok(())
    }

    /// Notes that a new guest runs, in the place of the one that was saved: out of its snapshot (`woken`), or from the
    /// beginning.
    ///
    /// # Errors
    /// [`SwitchError::Record`]
    pub fn note_restored(&mut self, woken: bool) -> Result<(), SwitchError> {
        self.update(|r| {
            r.hibernation = None;
            r.woken = woken;
            r.sentry = None;
            r.control_socket = None;
            r.cgroup = None;
            r.switch = SwitchState {
                wakes: r.switch.wakes.wrapping_add(1),
                ..SwitchState::default()
            };
            for container in &mut r.containers {
                container.last_known = None;
            }
        })?;
        Ok(())
    }

    /// Notes how the hibernated pod's shell stands: before anything of it is made, when it is whole, before it is ended, and
    /// when nothing of it is left.
    ///
    /// # Errors
    /// [`SwitchError::Record`]; nothing is noted then.
    pub fn note_shell(&mut self, shell: Option<Shell>) -> Result<(), SwitchError> {
        self.update(|r| {
            if let Some(hibernation) = &mut r.hibernation {
                hibernation.shell = shell;
            }
        })?;
        fail_point!("switch::shell::noted");
        Ok(())
    }

    /// Notes that a container of a hibernated pod was killed; its guest is not woken for that.
    ///
    /// # Errors
    /// [`SwitchError::Record`]
    pub fn note_ended(&mut self, container: &ContainerId, status: u8) -> Result<(), SwitchError> {
        self.update(|r| {
            if let Some(container) = r.container_mut(container) {
                container.ended.get_or_insert(status);
            }
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use dormouse_core::BirthWish;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::hold::HoldServer;
    use crate::record::{ContainerKind, ContainerRecord, Record, Restore, RestorePhase};
    use crate::run_dir::RunDir;
    use crate::switch::{Registration, Switch};

    /// Whether somebody has come to the waiter; it lets all in that have.
    fn is_nudged(waiter: &mut HoldServer) -> bool {
        let mut fds = [PollFd::new(waiter.as_fd(), PollFlags::POLLIN)];
        let came = poll(&mut fds, PollTimeout::ZERO).unwrap() > 0;
        waiter.serve(&mut |call, _| panic!("asked to {}", call.verb()));
        came
    }

    #[test]
    fn waiters_without_a_guest_to_ask_are_told_what_they_wait_for() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path().join("run")).unwrap();
        let switch = Switch::open(&dir, &"aa".parse().unwrap());
        let record = Record::of_nobody(switch.id());
        let mut held = switch
            .register(record, Registration::Born, Duration::from_millis(5))
            .unwrap();
        let id: ContainerId = "bb".parse().unwrap();
        held.put_container(ContainerRecord {
            id: id.clone(),
            name: "agent".to_owned(),
            kind: ContainerKind::Container,
            bundle: "/b".into(),
            last_known: None,
            launch: None,
            ended: None,
            played: false,
        })
        .unwrap();
        let mut waiter = HoldServer::bind(&dir, switch.id(), &id).unwrap();

        // With a guest, the guest is asked.
        held.update(|r| {
            r.hibernation = Some(Hibernation {
                snapshot: "s".to_owned(),
                phase: HibernationPhase::Releasing,
                containers: vec![id.clone()],
                runsc: None,
                shell: None,
            });
        })
        .unwrap();
        assert!(!is_nudged(&mut waiter));
        // Of no interest.
        held.note_phase(HibernationPhase::Released).unwrap();
        held.note_heard().unwrap();
        assert!(!is_nudged(&mut waiter));
        // It has ended.
        held.note_ended(&id, 143).unwrap();
        assert!(is_nudged(&mut waiter));
        held.note_ended(&id, 137).unwrap();
        assert!(!is_nudged(&mut waiter), "the first status counts");
        // There is a guest again.
        held.note_restored(true).unwrap();
        assert!(is_nudged(&mut waiter));
        held.note_heard().unwrap();
        assert!(!is_nudged(&mut waiter));
        // It is filled, at the second try.
        let loading = RestorePhase::Loading { containers: vec![] };
        for (phase, tells) in [
            (loading.clone(), false),
            (loading, false),
            (RestorePhase::Done { took_us: 1 }, true),
            (RestorePhase::Done { took_us: 1 }, false),
        ] {
            held.update(|r| {
                r.restore = Some(Restore {
                    wish: BirthWish::default(),
                    phase,
                    ended: vec![],
                    begun: vec![],
                    began_ms: 0,
                });
            })
            .unwrap();
            assert_eq!(is_nudged(&mut waiter), tells);
        }
        held.forget().unwrap();
        assert!(is_nudged(&mut waiter));
    }

    #[test]
    fn a_waiter_whose_queue_is_full_is_not_waited_for() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path().join("run")).unwrap();
        dir.prepare().unwrap();
        let (sandbox, container) = ("aa".parse().unwrap(), "bb".parse().unwrap());
        let holder = crate::hold::Holder::of(&dir, &sandbox, &container);
        holder.nudge();
        let mut waiter = HoldServer::bind(&dir, &sandbox, &container).unwrap();
        for _ in 0..64 {
            holder.nudge();
        }
        assert!(is_nudged(&mut waiter));
        assert!(!is_nudged(&mut waiter));
    }
}
