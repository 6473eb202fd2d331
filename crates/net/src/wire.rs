//! What one pod's wire makes of its frames: a state machine without I/O.

use std::time::Duration;

use dormouse_core::Moment;

use crate::budget::{Bucket, BucketLimits, Budgets, Suppressed};
use crate::classify::{PacketType, Resolve, Verdict, Wake};
use crate::event::{Delivery, Event, PodKey};
use crate::mac::MacAddress;
use crate::stats::Counters;

/// What a wire looks for: it follows the rung of its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WireMode {
    /// The guest runs: report activity, nothing more.
    Watch,
    /// The application is stopped, the guest's network stack runs: report what wakes.
    ///
    /// Also the mode for a guest whose network stack is the kernel's (runc) or its own (Kata), at any depth
    /// of sleep.
    Frozen,
    /// The guest's network stack is stopped too: report what wakes, answer for its addresses, ask for
    /// housekeeping.
    Dozing,
    /// A dozing guest's stack runs for a moment: as `Dozing`, and report that it has answered.
    Housekeeping,
    /// The guest is cut off from the wire and being saved: hold every frame to the pod's hardware address,
    /// in order, until it is released; report what wakes, answer for the pod's addresses.
    ///
    /// Where held frames could not be given to a guest
    /// ([`Attached::host_side`](crate::Attached::host_side)), nothing is held.
    Cut,
    /// Nobody is there: report what wakes, answer for the pod's addresses, and from the first frame that
    /// wakes on hold every frame, as in `Cut`.
    Hibernated,
    /// Woken by orders only: ignore every frame.
    Mute,
}

impl WireMode {
    const fn is_asleep(self) -> bool {
        match self {
            Self::Frozen | Self::Dozing | Self::Housekeeping | Self::Cut | Self::Hibernated => true,
            Self::Watch | Self::Mute => false,
        }
    }

    /// Whether frames are held.
    #[must_use]
    pub const fn holds(self) -> bool {
        matches!(self, Self::Cut | Self::Hibernated)
    }
}

/// The intervals that a wire keeps to; the public documentation is at [`crate::WireConfig`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) debounce: Duration,
    pub(crate) rewake: Duration,
    pub(crate) housekeeping: Duration,
    pub(crate) answers: BucketLimits,
    pub(crate) frames: BucketLimits,
    pub(crate) breather: Duration,
}

/// How often something that was not possible is tried again.
pub(crate) const RETRY: Duration = Duration::from_millis(100);

/// What all wires share.
pub(crate) struct Surroundings<'a> {
    pub(crate) now: Moment,
    pub(crate) pace: &'a Pace,
    pub(crate) budgets: &'a mut Budgets,
    pub(crate) counters: &'a Counters,
    pub(crate) emit: &'a mut dyn FnMut(Event) -> Delivery,
}

impl Surroundings<'_> {
    /// The end of an interval that begins now; none if it has no length.
    fn until_after(&self, interval: Duration) -> Option<Moment> {
        (!interval.is_zero()).then(|| self.now.after(interval))
    }

    fn deliver(&mut self, event: Event) -> bool {
        let taken = (self.emit)(event) == Delivery::Taken;
        if !taken {
            self.counters.events_refused.one();
        }
        taken
    }
}

/// What is to be done with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Forget it.
    Nothing,
    /// Answer the question that it asks.
    Answer(Resolve),
    /// Keep it for the guest.
    Hold,
}

/// A wake that is still to be reported.
#[derive(Debug, Clone, Copy)]
struct OwedWake {
    wake: Wake,
    seen: Moment,
    /// Its tokens have been taken; only the sink had no room.
    paid: bool,
    retry_at: Moment,
}

/// One pod's wire.
#[derive(Debug)]
pub(crate) struct Wire {
    pod: PodKey,
    mac: MacAddress,
    mode: WireMode,
    /// Held frames could be given to a guest.
    can_hold: bool,
    /// In mode `Hibernated`: somebody has asked for the pod, so it is worth holding what comes.
    wanted: bool,
    /// Activity was reported; nothing more is looked for until then.
    debounced_until: Option<Moment>,
    /// A wake was reported; no other is until then.
    woken_until: Option<Moment>,
    /// Too many frames came; none is looked at until then.
    breather_until: Option<Moment>,
    owed_wake: Option<OwedWake>,
    /// Housekeeping was asked for; not again before this.
    housekeeping_after: Option<Moment>,
    /// When the first frame was seen that housekeeping has not been asked for yet.
    owed_housekeeping: Option<Moment>,
    answered: bool,
    answers: Bucket,
    frames: Bucket,
}

impl Wire {
    pub(crate) fn new(pod: PodKey, mac: MacAddress, mode: WireMode, can_hold: bool) -> Self {
        Self {
            pod,
            mac,
            mode,
            can_hold,
            wanted: false,
            debounced_until: None,
            woken_until: None,
            breather_until: None,
            owed_wake: None,
            housekeeping_after: None,
            owed_housekeeping: None,
            answered: false,
            answers: Bucket::default(),
            frames: Bucket::default(),
        }
    }

    pub(crate) const fn pod(&self) -> &PodKey {
        &self.pod
    }

    pub(crate) const fn mode(&self) -> WireMode {
        self.mode
    }

    /// Changes the mode. A sleeper that goes from one sleeping mode to another keeps what it is owed;
    /// anything else begins anew.
    pub(crate) fn set_mode(&mut self, mode: WireMode) {
        if mode == self.mode {
            return;
        }
        if !(self.mode.is_asleep() && mode.is_asleep()) {
            self.woken_until = None;
            self.owed_wake = None;
            self.owed_housekeeping = None;
        }
        // A wake that was asked for while the guest was being saved is still asked for.
        self.wanted = mode == WireMode::Hibernated && self.is_asked_for();
        if mode == WireMode::Housekeeping {
            // The thaw that is beginning serves whatever has come so far.
            self.owed_housekeeping = None;
        }
        self.answered = false;
        self.debounced_until = None;
        self.mode = mode;
    }

    fn is_asked_for(&self) -> bool {
        self.woken_until.is_some() || self.owed_wake.is_some()
    }

    /// Whether every frame is held now.
    pub(crate) const fn holds(&self) -> bool {
        match self.mode {
            WireMode::Cut => self.can_hold,
            WireMode::Hibernated => self.can_hold && self.wanted,
            _ => false,
        }
    }

    /// The mode whose filter lets through what is looked for now.
    pub(crate) const fn filter(&self) -> WireMode {
        match self.mode {
            WireMode::Cut | WireMode::Hibernated if self.holds() => WireMode::Cut,
            WireMode::Cut | WireMode::Hibernated => WireMode::Hibernated,
            mode => mode,
        }
    }

    /// Nothing is held any more, because it has been held for too long.
    pub(crate) fn on_nothing_held(&mut self) {
        self.wanted &= self.is_asked_for();
    }

    /// Whether the kernel should drop everything for now, although the mode would look for something.
    pub(crate) const fn is_closed(&self) -> bool {
        let settled = match self.mode {
            WireMode::Watch => self.debounced_until.is_some(),
            WireMode::Frozen => self.woken_until.is_some(),
            // Questions for the hardware address still have to be answered.
            WireMode::Dozing | WireMode::Housekeeping | WireMode::Cut | WireMode::Hibernated => false,
            WireMode::Mute => true,
        };
        settled || self.breather_until.is_some()
    }

    /// Takes one frame's verdict.
    pub(crate) fn on_frame(
        &mut self,
        verdict: &Verdict,
        packet_type: PacketType,
        around: &mut Surroundings<'_>,
    ) -> Reaction {
        around.counters.frames.one();
        if !self.frames.try_take(around.pace.frames, around.now) {
            if self.breather_until.is_none() {
                around.counters.breathers.one();
            }
            self.breather_until = around.until_after(around.pace.breather);
        }
        if self.mode.holds() {
            return self.on_frame_for_nobody(verdict, packet_type, around);
        }
        match (self.mode, verdict) {
            (WireMode::Mute, _) | (_, Verdict::Ignore(_)) => around.counters.ignored.one(),
            (WireMode::Watch, Verdict::Wake(_)) => self.on_activity(around),
            (_, Verdict::Wake(wake)) => self.on_wake(*wake, around),
            (WireMode::Dozing, Verdict::Keepalive) => self.on_keepalive(around),
            (WireMode::Dozing | WireMode::Housekeeping, Verdict::Resolve(question)) => {
                return self.on_question(question, around);
            }
            (WireMode::Housekeeping, Verdict::Sent) if !self.answered => {
                around.counters.answered.one();
                self.answered = around.deliver(Event::Answered {
                    pod: self.pod.clone(),
                    at: around.now,
                });
            }
            (_, Verdict::Keepalive | Verdict::Resolve(_) | Verdict::Sent) => around.counters.ignored.one(),
        }
        Reaction::Nothing
    }

    /// A frame in a mode in which the guest gets none.
    fn on_frame_for_nobody(
        &mut self,
        verdict: &Verdict,
        packet_type: PacketType,
        around: &mut Surroundings<'_>,
    ) -> Reaction {
        match verdict {
            Verdict::Resolve(question) => return self.on_question(question, around),
            Verdict::Wake(wake) => {
                self.on_wake(*wake, around);
                // What the budget has suppressed has not been asked for, and must not fill the room.
                self.wanted |= self.is_asked_for();
            }
            _ => {}
        }
        if self.holds() && packet_type == PacketType::Host {
            Reaction::Hold
        } else {
            if !matches!(verdict, Verdict::Wake(_)) {
                around.counters.ignored.one();
            }
            Reaction::Nothing
        }
    }

    fn on_activity(&mut self, around: &mut Surroundings<'_>) {
        if self.debounced_until.is_some_and(|until| around.now < until) {
            return;
        }
        let blind_until = around.now.after(around.pace.debounce);
        if around.deliver(Event::Activity {
            pod: self.pod.clone(),
            at: around.now,
            blind_until,
        }) {
            around.counters.activities.one();
            self.debounced_until = around.until_after(around.pace.debounce);
        }
    }

    fn on_wake(&mut self, wake: Wake, around: &mut Surroundings<'_>) {
        if self.woken_until.is_some_and(|until| around.now < until)
            || self.owed_wake.is_some_and(|owed| owed.paid)
        {
            return;
        }
        match around.budgets.try_take(wake.source, around.now) {
            Ok(()) => self.report_wake(wake, around.now, around),
            Err(suppressed) => {
                match suppressed {
                    Suppressed::Source => around.counters.suppressed_source.one(),
                    Suppressed::Node => around.counters.suppressed_node.one(),
                }
                // Whoever connects tries again by itself. Data may already have been acknowledged by a stack
                // that runs, or will be in the next housekeeping thaw, and then never comes again.
                if wake.kind.is_data() && self.owed_wake.is_none() {
                    let retry_at = around.now.after(RETRY);
                    self.owed_wake = Some(OwedWake {
                        wake,
                        seen: around.now,
                        paid: false,
                        retry_at,
                    });
                }
            }
        }
    }

    fn report_wake(&mut self, wake: Wake, seen: Moment, around: &mut Surroundings<'_>) {
        if around.deliver(Event::Wake {
            pod: self.pod.clone(),
            at: seen,
            frame: wake.into(),
        }) {
            around.counters.wakes.one();
            self.owed_wake = None;
            self.owed_housekeeping = None;
            self.woken_until = around.until_after(around.pace.rewake);
        } else {
            let retry_at = around.now.after(RETRY);
            self.owed_wake = Some(OwedWake {
                wake,
                seen,
                paid: true,
                retry_at,
            });
        }
    }

    fn on_keepalive(&mut self, around: &mut Surroundings<'_>) {
        if self.woken_until.is_some_and(|until| around.now < until) {
            return;
        }
        let seen = *self.owed_housekeeping.get_or_insert(around.now);
        if self.housekeeping_after.is_none_or(|after| around.now >= after) {
            self.ask_for_housekeeping(seen, around);
        }
    }

    fn ask_for_housekeeping(&mut self, seen: Moment, around: &mut Surroundings<'_>) {
        let wait = if around.deliver(Event::Housekeeping {
            pod: self.pod.clone(),
            at: seen,
        }) {
            around.counters.housekeepings.one();
            self.owed_housekeeping = None;
            around.pace.housekeeping
        } else {
            RETRY
        };
        self.housekeeping_after = Some(around.now.after(wait));
    }

    fn on_question(&mut self, question: &Resolve, around: &Surroundings<'_>) -> Reaction {
        let asker = match question {
            Resolve::Arp(request) => request.sender_mac,
            Resolve::Neighbour(solicit) => solicit.sender_mac,
        };
        if asker == self.mac || !self.mac.is_unicast() {
            around.counters.ignored.one();
            return Reaction::Nothing;
        }
        if !self.answers.try_take(around.pace.answers, around.now) {
            around.counters.answers_suppressed.one();
            return Reaction::Nothing;
        }
        Reaction::Answer(*question)
    }

    /// When [`Self::on_time`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        let owed_housekeeping = match self.mode {
            WireMode::Dozing if self.owed_housekeeping.is_some() => self.housekeeping_after,
            _ => None,
        };
        [
            self.debounced_until,
            self.woken_until,
            self.breather_until,
            self.owed_wake.map(|owed| owed.retry_at),
            owed_housekeeping,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what has become due.
    pub(crate) fn on_time(&mut self, around: &mut Surroundings<'_>) {
        let now = around.now;
        for until in [
            &mut self.debounced_until,
            &mut self.woken_until,
            &mut self.breather_until,
        ] {
            *until = until.filter(|until| now < *until);
        }
        if let Some(owed) = self.owed_wake.filter(|owed| now >= owed.retry_at) {
            if self.woken_until.is_some() {
                self.owed_wake = None;
            } else if owed.paid || around.budgets.try_take(owed.wake.source, now).is_ok() {
                if !owed.paid {
                    around.counters.deferred_wakes.one();
                }
                self.report_wake(owed.wake, owed.seen, around);
            } else {
                self.owed_wake = Some(OwedWake {
                    retry_at: now.after(RETRY),
                    ..owed
                });
            }
        }
        if self.mode == WireMode::Dozing
            && let Some(seen) = self.owed_housekeeping
            && self.housekeeping_after.is_none_or(|after| now >= after)
        {
            self.ask_for_housekeeping(seen, around);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::budget::Budget;
    use crate::classify::{ArpRequest, Ignored, WakeKind};

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const PACE: Pace = Pace {
        debounce: Duration::from_millis(1000),
        rewake: Duration::from_millis(1000),
        housekeeping: Duration::from_millis(2000),
        answers: BucketLimits {
            burst: 2,
            refill: Duration::from_millis(100),
        },
        frames: BucketLimits {
            burst: 100,
            refill: Duration::from_millis(1),
        },
        breather: Duration::from_millis(100),
    };

    struct Bench {
        wire: Wire,
        budgets: Budgets,
        counters: Counters,
        events: Vec<Event>,
        full: bool,
    }

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(50_000 + ms))
    }

    impl Bench {
        fn new(mode: WireMode) -> Self {
            Self::with_budget(mode, Budget::default())
        }

        fn with_budget(mode: WireMode, budget: Budget) -> Self {
            Self {
                wire: Wire::new("pod".into(), MAC, mode, true),
                budgets: Budgets::new(budget),
                counters: Counters::default(),
                events: Vec::new(),
                full: false,
            }
        }

        fn with<R>(&mut self, ms: u64, act: impl FnOnce(&mut Wire, &mut Surroundings<'_>) -> R) -> R {
            let (events, full) = (&mut self.events, self.full);
            let mut emit = |event| {
                if full {
                    return Delivery::Refused;
                }
                events.push(event);
                Delivery::Taken
            };
            let mut around = Surroundings {
                now: at(ms),
                pace: &PACE,
                budgets: &mut self.budgets,
                counters: &self.counters,
                emit: &mut emit,
            };
            act(&mut self.wire, &mut around)
        }

        fn frame(&mut self, ms: u64, verdict: Verdict) -> Option<Resolve> {
            match self.react(ms, verdict) {
                Reaction::Answer(question) => Some(question),
                _ => None,
            }
        }

        fn react(&mut self, ms: u64, verdict: Verdict) -> Reaction {
            self.with(ms, |wire, around| {
                wire.on_frame(&verdict, PacketType::Host, around)
            })
        }

        fn time(&mut self, ms: u64) {
            self.with(ms, Wire::on_time);
        }

        fn kinds(&self) -> Vec<&'static str> {
            self.events
                .iter()
                .map(|e| match e {
                    Event::Activity { .. } => "activity",
                    Event::Wake { .. } => "wake",
                    Event::Housekeeping { .. } => "housekeeping",
                    Event::Answered { .. } => "answered",
                    Event::Lost { .. } => "lost",
                })
                .collect()
        }
    }

    fn wake(kind: WakeKind) -> Verdict {
        Verdict::Wake(Wake {
            kind,
            source: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
            source_port: 40_000,
            destination: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)),
            destination_port: 80,
        })
    }

    fn arp(sender_mac: MacAddress) -> Verdict {
        let (sender, target) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        Verdict::Resolve(Resolve::Arp(ArpRequest {
            sender_mac,
            sender,
            target,
        }))
    }

    const ONE: Budget = Budget {
        per_source: BucketLimits {
            burst: 1,
            refill: Duration::from_millis(5000),
        },
        per_node: BucketLimits {
            burst: 100,
            refill: Duration::from_millis(1),
        },
        sources: std::num::NonZeroUsize::MIN,
    };

    #[test]
    fn activity_is_debounced() {
        let mut b = Bench::new(WireMode::Watch);
        b.frame(0, wake(WakeKind::TcpSyn));
        assert!(b.wire.is_closed());
        assert_eq!(b.wire.next_deadline(), Some(at(1000)));
        b.frame(10, wake(WakeKind::TcpSyn));
        b.time(1000);
        assert!(!b.wire.is_closed());
        b.frame(1001, wake(WakeKind::TcpPayload));
        assert_eq!(b.kinds(), ["activity", "activity"]);
    }

    #[test]
    fn going_to_sleep_opens_a_debounced_wire() {
        let mut b = Bench::new(WireMode::Watch);
        b.frame(0, wake(WakeKind::TcpSyn));
        b.wire.set_mode(WireMode::Frozen);
        assert!(!b.wire.is_closed());
        b.frame(1, wake(WakeKind::TcpPayload));
        assert_eq!(b.kinds(), ["activity", "wake"]);
        assert!(b.wire.is_closed());
    }

    #[test]
    fn a_wake_is_reported_once_and_again_when_it_led_nowhere() {
        let mut b = Bench::new(WireMode::Dozing);
        b.frame(0, wake(WakeKind::TcpSyn));
        b.frame(1, wake(WakeKind::TcpSyn));
        b.frame(2, Verdict::Keepalive);
        assert_eq!(b.kinds(), ["wake"]);
        b.time(1000);
        b.frame(1000, wake(WakeKind::TcpSyn));
        assert_eq!(b.kinds(), ["wake", "wake"]);
    }

    #[test]
    fn data_over_budget_wakes_later_and_a_syn_does_not() {
        let mut b = Bench::with_budget(WireMode::Frozen, ONE);
        b.budgets
            .try_take(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), at(0))
            .unwrap();
        b.frame(0, wake(WakeKind::TcpSyn));
        assert_eq!(b.wire.next_deadline(), None);
        b.frame(1, wake(WakeKind::TcpPayload));
        assert_eq!(b.wire.next_deadline(), Some(at(101)));
        b.wire.set_mode(WireMode::Dozing);
        b.time(4000);
        assert!(b.kinds().is_empty());
        b.time(5000);
        assert_eq!(b.kinds(), ["wake"]);
        assert_eq!(b.counters.suppressed_source.get(), 2);
        assert_eq!(b.counters.deferred_wakes.get(), 1);
        b.time(6000);
        b.time(7000);
        assert_eq!(b.kinds(), ["wake"]);
    }

    #[test]
    fn a_full_sink_gets_the_wake_again_without_paying_twice() {
        let mut b = Bench::with_budget(WireMode::Frozen, ONE);
        b.full = true;
        b.frame(0, wake(WakeKind::TcpSyn));
        b.frame(1, wake(WakeKind::TcpSyn));
        assert_eq!(b.counters.suppressed_source.get(), 0);
        b.full = false;
        b.time(100);
        assert_eq!(b.kinds(), ["wake"]);
    }

    #[test]
    fn awake_again_owes_nothing() {
        let mut b = Bench::with_budget(WireMode::Frozen, ONE);
        b.full = true;
        b.frame(0, wake(WakeKind::TcpSyn));
        b.wire.set_mode(WireMode::Watch);
        assert_eq!(b.wire.next_deadline(), None);
    }

    #[test]
    fn housekeeping_is_asked_for_at_once_and_then_at_a_pace() {
        let mut b = Bench::new(WireMode::Dozing);
        b.frame(0, Verdict::Keepalive);
        b.frame(10, Verdict::Keepalive);
        b.frame(20, Verdict::Keepalive);
        assert_eq!(b.kinds(), ["housekeeping"]);
        assert_eq!(b.wire.next_deadline(), Some(at(2000)));
        b.time(2000);
        assert_eq!(b.kinds(), ["housekeeping", "housekeeping"]);
        assert_eq!(b.wire.next_deadline(), None);
        b.frame(9000, Verdict::Keepalive);
        assert_eq!(b.events.len(), 3);
    }

    #[test]
    fn a_housekeeping_thaw_serves_all_that_came() {
        let mut b = Bench::new(WireMode::Dozing);
        b.frame(0, Verdict::Keepalive);
        b.frame(1, Verdict::Keepalive);
        b.wire.set_mode(WireMode::Housekeeping);
        b.frame(5, Verdict::Keepalive);
        b.frame(6, Verdict::Sent);
        b.frame(7, Verdict::Sent);
        b.wire.set_mode(WireMode::Dozing);
        b.time(5000);
        assert_eq!(b.kinds(), ["housekeeping", "answered"]);
    }

    #[test]
    fn questions_are_answered_at_a_pace_and_only_while_the_stack_stands_still() {
        let other = MacAddress([2, 0, 0, 0, 0, 9]);
        let mut b = Bench::new(WireMode::Dozing);
        assert!(b.frame(0, arp(other)).is_some());
        assert!(b.frame(0, arp(MAC)).is_none());
        assert!(b.frame(0, arp(other)).is_some());
        assert!(b.frame(0, arp(other)).is_none());
        assert!(b.frame(100, arp(other)).is_some());
        for mode in [WireMode::Watch, WireMode::Frozen, WireMode::Mute] {
            b.wire.set_mode(mode);
            assert!(b.frame(5000, arp(other)).is_none());
        }
    }

    #[test]
    fn a_flood_closes_the_wire_for_a_moment() {
        let mut b = Bench::new(WireMode::Dozing);
        for _ in 0..100 {
            b.frame(0, Verdict::Ignore(Ignored::Port));
        }
        assert!(!b.wire.is_closed());
        b.frame(0, Verdict::Ignore(Ignored::Port));
        assert!(b.wire.is_closed());
        b.time(100);
        assert!(!b.wire.is_closed());
    }

    #[test]
    fn a_guest_that_is_cut_off_misses_nothing() {
        let mut b = Bench::new(WireMode::Cut);
        assert!(b.wire.holds());
        for verdict in [
            Verdict::Keepalive,
            Verdict::Ignore(Ignored::Protocol),
            wake(WakeKind::TcpPayload),
            Verdict::Sent,
        ] {
            assert_eq!(b.react(0, verdict), Reaction::Hold);
        }
        assert!(matches!(
            b.react(1, arp(MacAddress([2, 0, 0, 0, 0, 9]))),
            Reaction::Answer(_)
        ));
        assert_eq!(b.kinds(), ["wake"]);
        // It had been asked for, and so it is still.
        b.wire.set_mode(WireMode::Hibernated);
        assert_eq!(b.wire.filter(), WireMode::Cut);
        assert_eq!(b.react(2, Verdict::Keepalive), Reaction::Hold);
        b.wire.set_mode(WireMode::Watch);
        assert!(!b.wire.holds());
        assert_eq!(b.react(3, Verdict::Keepalive), Reaction::Nothing);
    }

    #[test]
    fn nobody_misses_what_comes_before_the_first_wake() {
        let mut b = Bench::with_budget(WireMode::Hibernated, ONE);
        assert_eq!(b.wire.filter(), WireMode::Hibernated);
        assert_eq!(b.react(0, Verdict::Keepalive), Reaction::Nothing);
        assert_eq!(b.react(0, wake(WakeKind::TcpSyn)), Reaction::Hold);
        assert_eq!(b.react(1, Verdict::Keepalive), Reaction::Hold);
        assert_eq!((b.wire.filter(), b.kinds()), (WireMode::Cut, vec!["wake"]));
        // All that was held has been forgotten; the wake is still under way, and then it is not.
        b.wire.on_nothing_held();
        assert!(b.wire.holds());
        b.time(1000);
        b.wire.on_nothing_held();
        assert!(!b.wire.holds());
        // Over budget: a SYN comes again by itself, data may not.
        assert_eq!(b.react(1001, wake(WakeKind::TcpSyn)), Reaction::Nothing);
        assert_eq!(b.react(1002, wake(WakeKind::Udp)), Reaction::Hold);
        assert!(b.wire.holds());
    }

    #[test]
    fn only_frames_to_the_pod_alone_are_held() {
        let mut b = Bench::new(WireMode::Cut);
        for packet_type in [
            PacketType::Broadcast,
            PacketType::Multicast,
            PacketType::OtherHost,
        ] {
            let verdict = Verdict::Ignore(Ignored::NotToHost);
            let reaction = b.with(0, |wire, around| wire.on_frame(&verdict, packet_type, around));
            assert_eq!(reaction, Reaction::Nothing);
        }
    }

    #[test]
    fn where_nothing_can_be_given_back_nothing_is_held() {
        for mode in [WireMode::Cut, WireMode::Hibernated] {
            let mut b = Bench::new(mode);
            b.wire = Wire::new("pod".into(), MAC, mode, false);
            assert_eq!(b.wire.filter(), WireMode::Hibernated);
            assert_eq!(b.react(0, wake(WakeKind::TcpSyn)), Reaction::Nothing);
            assert_eq!(b.react(0, wake(WakeKind::TcpSyn)), Reaction::Nothing);
            assert_eq!(b.kinds(), ["wake"]);
        }
    }

    #[test]
    fn mute_ignores_all() {
        let mut b = Bench::new(WireMode::Mute);
        assert!(b.wire.is_closed());
        for verdict in [
            wake(WakeKind::TcpSyn),
            Verdict::Keepalive,
            arp(MAC),
            Verdict::Sent,
        ] {
            assert!(b.frame(0, verdict).is_none());
        }
        assert!(b.events.is_empty());
    }
}
