//! When a pod goes to sleep, and what may wake it.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ANNOTATION_PROBES, BirthWish, LateEnv, LateEnvError, ShellPolicy, WakeSchedule};

/// What every annotation of Dormouse begins with.
pub const ANNOTATION_PREFIX: &str = "dormouse.dev/";
/// `"true"` puts the pod under management, `"false"` keeps it out.
pub const ANNOTATION_MANAGED: &str = "dormouse.dev/managed";
/// How long the pod has to be idle before it may go to sleep.
pub const ANNOTATION_IDLE_TIMEOUT: &str = "dormouse.dev/idle-timeout";
/// How long after the start of idleness the pod is frozen.
pub const ANNOTATION_FREEZE_AFTER: &str = "dormouse.dev/freeze-after";
/// How long after the start of idleness the pod's memory is pushed out.
pub const ANNOTATION_DOZE_AFTER: &str = "dormouse.dev/doze-after";
/// How long after the start of idleness the guest is saved to a snapshot and ended.
pub const ANNOTATION_HIBERNATE_AFTER: &str = "dormouse.dev/hibernate-after";
/// `"true"`: the guest is saved to a snapshot before its memory is pushed out.
pub const ANNOTATION_DURABLE: &str = "dormouse.dev/durable";
/// `Hold`, `Fail` or `ColdStart`.
pub const ANNOTATION_FALLBACK: &str = "dormouse.dev/fallback";
/// `OnDemand` or `Manual`.
pub const ANNOTATION_RESUME_POLICY: &str = "dormouse.dev/resume-policy";
/// `Never`, `Always` or `Predicted`: when a shell stands by for the hibernated pod.
pub const ANNOTATION_SHELL: &str = "dormouse.dev/shell";
/// When the pod is expected to be used: a cron expression of five fields, in UTC.
pub const ANNOTATION_WAKE_SCHEDULE: &str = "dormouse.dev/wake-schedule";
/// UDP ports whose payload wakes the pod, as in `"53,5353"`.
pub const ANNOTATION_WAKE_UDP_PORTS: &str = "dormouse.dev/wake-udp-ports";

/// The longest duration that a policy may hold: 30 days. A longer one is a typing error.
pub const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 3600);

/// The most UDP ports that one pod may name.
const MAX_UDP_PORTS: usize = 32;

/// The longest annotation value that is looked at, in bytes.
const MAX_VALUE: usize = 256;

/// What may wake a sleeping pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum ResumePolicy {
    /// Whatever wakes, wakes: a packet, a request, an exec, an order.
    #[default]
    OnDemand,
    /// Only an order through the API, an exec or a kill; the pod's frames are not answered.
    Manual,
}

/// What becomes of a hibernated pod whose snapshot cannot be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Fallback {
    /// It stays hibernated, its snapshot is kept, and the wake is tried again, ever less often.
    #[default]
    Hold,
    /// It stays hibernated, its snapshot is kept, and only a new wake tries again.
    Fail,
    /// It starts anew without its memory, at once where another try cannot help, else after some; its snapshot is kept.
    ColdStart,
}

impl Fallback {
    /// The name, as it stands in annotations, APIs and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "Hold",
            Self::Fail => "Fail",
            Self::ColdStart => "ColdStart",
        }
    }
}

impl FromStr for Fallback {
    type Err = PolicyError;

    fn from_str(s: &str) -> Result<Self, PolicyError> {
        [Self::Hold, Self::Fail, Self::ColdStart]
            .into_iter()
            .find(|fallback| fallback.as_str() == s)
            .ok_or_else(|| PolicyError::UnknownFallback { value: shown(s) })
    }
}

/// When a pod goes to sleep, and what may wake it.
///
/// All times count from the start of idleness. A pod without `idle_timeout` never sleeps by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// How long a pod has to be idle before it may go to sleep at all; `None` = never by itself.
    #[serde(default)]
    pub idle_timeout: Option<Duration>,
    /// When it is frozen; `None` = at `idle_timeout`.
    #[serde(default)]
    pub freeze_after: Option<Duration>,
    /// When its memory is pushed out; `None` = the node's default after the freeze.
    #[serde(default)]
    pub doze_after: Option<Duration>,
    /// When it is saved to a snapshot and its guest is ended; `None` = never by itself.
    #[serde(default)]
    pub hibernate_after: Option<Duration>,
    /// Whether it is saved to a snapshot before its memory is pushed out.
    #[serde(default)]
    pub durable: bool,
    /// What becomes of it if its snapshot cannot be restored.
    #[serde(default)]
    pub fallback: Fallback,
    /// What may wake it.
    #[serde(default)]
    pub resume_policy: ResumePolicy,
    /// UDP ports whose payload wakes it.
    #[serde(default)]
    pub wake_udp_ports: Vec<u16>,
    /// When a shell stands by for it while it is hibernated.
    #[serde(default)]
    pub shell: ShellPolicy,
    /// When it is expected to be used; only with [`ShellPolicy::Predicted`].
    #[serde(default)]
    pub wake_schedule: Option<WakeSchedule>,
}

/// What the node adds where a policy is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PolicyDefaults {
    /// From the freeze to the doze.
    pub doze_after_freeze: Duration,
}

impl Default for PolicyDefaults {
    fn default() -> Self {
        Self {
            doze_after_freeze: Duration::from_secs(30),
        }
    }
}

/// A policy that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The text is no duration.
    #[error(
        "annotation {annotation} holds {value:?}, which is not a duration; write it like \"90s\", \"15m\" or \"1h30m\""
    )]
    BadDuration {
        /// Which annotation.
        annotation: String,
        /// The value, shortened.
        value: String,
    },
    /// The duration is longer than [`MAX_DURATION`].
    #[error("{field} is longer than 30 days")]
    TooLong {
        /// Which field.
        field: String,
    },
    /// The duration is negative or out of range.
    #[error("{field} is negative or out of range")]
    NegativeDuration {
        /// Which field.
        field: &'static str,
    },
    /// Freezing before the pod counts as idle, or dozing before it is frozen.
    #[error("{later} ({later_ms} ms) must not be shorter than {earlier} ({earlier_ms} ms)")]
    WrongOrder {
        /// The field that has to be at least as long.
        later: &'static str,
        /// Its value in milliseconds.
        later_ms: u128,
        /// The field that has to be at most as long.
        earlier: &'static str,
        /// Its value in milliseconds.
        earlier_ms: u128,
    },
    /// `freeze_after`, `doze_after` or `hibernate_after` without `idle_timeout`.
    #[error("{field} is set but idle-timeout is not, so the pod would never sleep; set idle-timeout too")]
    NoIdleTimeout {
        /// Which field.
        field: &'static str,
    },
    /// An idle timeout of zero would put a pod to sleep between two instructions.
    #[error("idle-timeout must be at least 100ms")]
    IdleTimeoutTooShort,
    /// Neither `OnDemand` nor `Manual`.
    #[error("resume-policy is {value:?}; expected OnDemand or Manual")]
    UnknownResumePolicy {
        /// The value, shortened.
        value: String,
    },
    /// None of `Hold`, `Fail` and `ColdStart`.
    #[error("fallback is {value:?}; expected Hold, Fail or ColdStart")]
    UnknownFallback {
        /// The value, shortened.
        value: String,
    },
    /// None of `Never`, `Always` and `Predicted`.
    #[error("shell is {value:?}; expected Never, Always or Predicted")]
    UnknownShell {
        /// The value, shortened.
        value: String,
    },
    /// Not a cron expression of five fields, or one that never comes.
    #[error(
        "wake-schedule is {value:?}; expected a cron expression of five fields, in UTC, as in \"30 8 * * MON-FRI\""
    )]
    BadSchedule {
        /// The value, shortened.
        value: String,
    },
    /// A schedule that nothing would come of.
    #[error("wake-schedule is set but shell is not Predicted, so nothing would come of it")]
    ScheduleWithoutShell,
    /// Neither `true` nor `false`.
    #[error("annotation {annotation} is {value:?}; expected \"true\" or \"false\"")]
    BadFlag {
        /// Which annotation.
        annotation: String,
        /// The value, shortened.
        value: String,
    },
    /// Not a UDP port.
    #[error("{value:?} is not a UDP port from 1 to 65535")]
    BadPort {
        /// The value, shortened.
        value: String,
    },
    /// More than 32 UDP ports.
    #[error("more than 32 UDP ports are named")]
    TooManyPorts,
    /// The annotation's value is longer than 256 bytes.
    #[error("annotation {annotation} is longer than 256 bytes")]
    ValueTooLong {
        /// Which annotation.
        annotation: String,
    },
    /// An annotation with our prefix that this version does not know.
    #[error("annotation {annotation} is not known; check its spelling")]
    UnknownAnnotation {
        /// Which annotation.
        annotation: String,
    },
    /// An annotation about the environment of claims cannot be used.
    #[error(transparent)]
    LateEnv(#[from] LateEnvError),
}

/// Shortens hostile input for a message and takes control characters out.
pub(crate) fn shown(value: &str) -> String {
    value
        .chars()
        .take(40)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

impl Policy {
    /// The policy that a pod's annotations ask for, and whether they ask for management.
    ///
    /// The first part is `Some(true)` or `Some(false)` where `dormouse.dev/managed` is set, `None` where
    /// the node's configuration decides.
    ///
    /// # Errors
    /// An annotation of ours holds a value that cannot be used. The pod is then left alone: a policy that
    /// was half understood is worse than none.
    pub fn from_annotations(
        annotations: &BTreeMap<String, String>,
    ) -> Result<(Option<bool>, Self), PolicyError> {
        let mut managed = None;
        let mut policy = Self::default();
        for (key, value) in annotations.range(ANNOTATION_PREFIX.to_owned()..) {
            if !key.starts_with(ANNOTATION_PREFIX) {
                break;
            }
            if BirthWish::knows(key) || LateEnv::knows(key) || key == ANNOTATION_PROBES {
                continue;
            }
            if value.len() > MAX_VALUE {
                return Err(PolicyError::ValueTooLong {
                    annotation: shown(key),
                });
            }
            match key.as_str() {
                ANNOTATION_MANAGED => managed = Some(flag(key, value)?),
                ANNOTATION_IDLE_TIMEOUT => policy.idle_timeout = Some(duration(key, value)?),
                ANNOTATION_FREEZE_AFTER => policy.freeze_after = Some(duration(key, value)?),
                ANNOTATION_DOZE_AFTER => policy.doze_after = Some(duration(key, value)?),
                ANNOTATION_HIBERNATE_AFTER => policy.hibernate_after = Some(duration(key, value)?),
                ANNOTATION_DURABLE => policy.durable = flag(key, value)?,
                ANNOTATION_FALLBACK => policy.fallback = value.parse()?,
                ANNOTATION_RESUME_POLICY => {
                    policy.resume_policy = match value.as_str() {
                        "OnDemand" => ResumePolicy::OnDemand,
                        "Manual" => ResumePolicy::Manual,
                        _ => return Err(PolicyError::UnknownResumePolicy { value: shown(value) }),
                    };
                }
                ANNOTATION_WAKE_UDP_PORTS => policy.wake_udp_ports = ports(value)?,
                ANNOTATION_SHELL => policy.shell = value.parse()?,
                ANNOTATION_WAKE_SCHEDULE => policy.wake_schedule = Some(value.parse()?),
                _ => {
                    return Err(PolicyError::UnknownAnnotation {
                        annotation: shown(key),
                    });
                }
            }
        }
        LateEnv::from_annotations(annotations)?;
        policy.check()?;
        Ok((managed, policy))
    }

    /// Checks that the policy can be carried out.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn check(&self) -> Result<(), PolicyError> {
        let named = [
            ("idle-timeout", self.idle_timeout),
            ("freeze-after", self.freeze_after),
            ("doze-after", self.doze_after),
            ("hibernate-after", self.hibernate_after),
        ];
        for (field, value) in named {
            if value.is_some_and(|v| v > MAX_DURATION) {
                return Err(PolicyError::TooLong {
                    field: field.to_owned(),
                });
            }
        }
        if self.idle_timeout.is_some_and(|t| t < Duration::from_millis(100)) {
            return Err(PolicyError::IdleTimeoutTooShort);
        }
        if self.idle_timeout.is_none() {
            for (field, value) in [
                ("freeze-after", self.freeze_after),
                ("doze-after", self.doze_after),
                ("hibernate-after", self.hibernate_after),
            ] {
                if value.is_some() {
                    return Err(PolicyError::NoIdleTimeout { field });
                }
            }
        }
        let mut before: Option<(&'static str, Duration)> = None;
        for (field, value) in named {
            let Some(value) = value else { continue };
            if let Some((earlier, at)) = before
                && value < at
            {
                return Err(PolicyError::WrongOrder {
                    later: field,
                    later_ms: value.as_millis(),
                    earlier,
                    earlier_ms: at.as_millis(),
                });
            }
            before = Some((field, value));
        }
        if self.wake_udp_ports.len() > MAX_UDP_PORTS {
            return Err(PolicyError::TooManyPorts);
        }
        if self.wake_schedule.is_some() && self.shell != ShellPolicy::Predicted {
            return Err(PolicyError::ScheduleWithoutShell);
        }
        Ok(())
    }

    /// After how much idleness the pod is frozen; `None` if it never sleeps by itself.
    #[must_use]
    pub fn freezes_after(&self) -> Option<Duration> {
        self.idle_timeout.map(|idle| self.freeze_after.unwrap_or(idle))
    }

    /// After how much idleness the pod's memory is pushed out; `None` if it never sleeps by itself.
    #[must_use]
    pub fn dozes_after(&self, defaults: &PolicyDefaults) -> Option<Duration> {
        self.freezes_after().map(|freeze| {
            self.doze_after
                .unwrap_or_else(|| freeze.saturating_add(defaults.doze_after_freeze))
        })
    }

    /// After how much idleness the pod is hibernated; `None` if it never is by itself.
    #[must_use]
    pub fn hibernates_after(&self) -> Option<Duration> {
        self.idle_timeout.and(self.hibernate_after)
    }
}

fn flag(annotation: &str, value: &str) -> Result<bool, PolicyError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(PolicyError::BadFlag {
            annotation: shown(annotation),
            value: shown(value),
        }),
    }
}

fn duration(annotation: &str, value: &str) -> Result<Duration, PolicyError> {
    parse_duration(value).ok_or_else(|| PolicyError::BadDuration {
        annotation: shown(annotation),
        value: shown(value),
    })
}

fn ports(value: &str) -> Result<Vec<u16>, PolicyError> {
    let mut ports = Vec::new();
    for part in value.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        if ports.len() == MAX_UDP_PORTS {
            return Err(PolicyError::TooManyPorts);
        }
        let port = part
            .parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| PolicyError::BadPort { value: shown(part) })?;
        ports.push(port);
    }
    Ok(ports)
}

/// Parses a duration in the form of Kubernetes' `metav1.Duration`: a sequence of decimal numbers with a
/// unit each (`ms`, `s`, `m`, `h`), as in `1h30m` or `1.5s`. `None` if the text is anything else.
///
/// Source: Go's `time.ParseDuration`, without signs and without the units below a millisecond.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(unit_end)?;
        let unit_millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || whole.len() > 12 || fraction.len() > 9 || fraction.contains('.') {
            return None;
        }
        let mut nanos = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit_millis) * 1_000_000;
        if !fraction.is_empty() {
            let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
            nanos += u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit_millis) * 1_000_000 / scale;
        }
        total = total.checked_add(Duration::from_nanos(u64::try_from(nanos).ok()?))?;
        rest = tail;
    }
    Some(total)
}

/// Writes a duration in the form that [`parse_duration`] reads, down to the millisecond.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    use std::fmt::Write as _;

    let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
    let (seconds, millis) = (duration.as_secs() % 60, duration.subsec_millis());
    let mut text = String::new();
    for (value, unit) in [
        (hours, "h"),
        (minutes, "m"),
        (seconds, "s"),
        (u64::from(millis), "ms"),
    ] {
        if value > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, "{value}{unit}");
        }
    }
    if text.is_empty() { "0".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| (format!("{ANNOTATION_PREFIX}{k}"), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn a_full_set_of_annotations() {
        let mut all = annotations(&[
            ("managed", "true"),
            ("idle-timeout", "1m30s"),
            ("freeze-after", "2m"),
            ("doze-after", "1h"),
            ("hibernate-after", "2h"),
            ("durable", "true"),
            ("fallback", "Fail"),
            ("resume-policy", "Manual"),
            ("wake-udp-ports", "53, 5353"),
            ("shell", "Predicted"),
            ("wake-schedule", "30 8 * * MON-FRI"),
        ]);
        all.insert("io.kubernetes.other".into(), "x".into());
        let (managed, policy) = Policy::from_annotations(&all).unwrap();
        assert_eq!(managed, Some(true));
        assert_eq!(policy.idle_timeout, Some(Duration::from_secs(90)));
        assert_eq!(policy.hibernates_after(), Some(Duration::from_secs(7200)));
        assert!(policy.durable);
        assert_eq!(policy.fallback, Fallback::Fail);
        assert_eq!(policy.freezes_after(), Some(Duration::from_secs(120)));
        assert_eq!(
            policy.dozes_after(&PolicyDefaults::default()),
            Some(Duration::from_secs(3600))
        );
        assert_eq!(policy.resume_policy, ResumePolicy::Manual);
        assert_eq!(policy.wake_udp_ports, [53, 5353]);
        assert_eq!(policy.shell, ShellPolicy::Predicted);
        assert_eq!(policy.wake_schedule.unwrap().as_str(), "30 8 * * MON-FRI");
    }

    #[test]
    fn none_means_no_sleep() {
        let (managed, policy) = Policy::from_annotations(&BTreeMap::new()).unwrap();
        assert_eq!(managed, None);
        assert_eq!(policy.freezes_after(), None);
        assert_eq!(policy.dozes_after(&PolicyDefaults::default()), None);
    }

    #[test]
    fn hostile_values_are_refused() {
        for pair in [
            ("managed", "yes"),
            ("managed", ""),
            ("idle-timeout", "-5s"),
            ("idle-timeout", "5"),
            ("idle-timeout", "1d"),
            ("idle-timeout", "99999999999999999999h"),
            ("idle-timeout", "721h"),
            ("idle-timeout", "0"),
            ("idle-timeout", "1.1.1s"),
            ("idle-timeout", "١s"),
            ("idle-timeout", "5s\u{0}"),
            ("freeze-after", "5s"),
            ("resume-policy", "ondemand"),
            ("wake-udp-ports", "0"),
            ("wake-udp-ports", "70000"),
            ("wake-udp-ports", "53;rm"),
            ("idle-timeoutt", "5s"),
            ("shell", "always"),
            ("wake-schedule", "30 8 * * *"),
        ] {
            assert!(
                Policy::from_annotations(&annotations(&[pair])).is_err(),
                "{pair:?}"
            );
        }
        assert!(Policy::from_annotations(&annotations(&[("fallback", "cold")])).is_err());
        assert!(Policy::from_annotations(&annotations(&[("durable", "yes")])).is_err());
        assert!(Policy::from_annotations(&annotations(&[("hibernate-after", "1h")])).is_err());
        let early = [
            ("idle-timeout", "5m"),
            ("doze-after", "10m"),
            ("hibernate-after", "6m"),
        ];
        assert!(Policy::from_annotations(&annotations(&early)).is_err());
        let long = "9".repeat(300);
        assert!(Policy::from_annotations(&annotations(&[("idle-timeout", &long)])).is_err());
        let many = vec!["1"; 40].join(",");
        assert_eq!(
            Policy::from_annotations(&annotations(&[("wake-udp-ports", &many)])),
            Err(PolicyError::TooManyPorts)
        );
        assert!(
            Policy::from_annotations(&annotations(&[("idle-timeout", "5m"), ("doze-after", "1m")])).is_err()
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = parse_duration(&text);
            let _ = Policy::from_annotations(&annotations(&[("idle-timeout", &text), ("managed", &text)]));
        }

        #[test]
        fn durations_round_trip(millis in 0u64..=2_592_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }
    }
}
