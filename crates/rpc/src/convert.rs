//! Between the wire's words and those of `dormouse-core`.

use std::time::Duration;

use dormouse_core as core;

use crate::v1;

impl From<core::Rung> for v1::Rung {
    fn from(rung: core::Rung) -> Self {
        match rung {
            core::Rung::Running => Self::Running,
            core::Rung::Frozen => Self::Frozen,
            core::Rung::Dozing => Self::Dozing,
            core::Rung::Hibernated => Self::Hibernated,
            core::Rung::Archived => Self::Archived,
            core::Rung::Stopped => Self::Stopped,
        }
    }
}

impl v1::Rung {
    /// The rung in core's words; `None` for one that is unspecified.
    #[must_use]
    pub const fn to_core(self) -> Option<core::Rung> {
        match self {
            Self::Unspecified => None,
            Self::Running => Some(core::Rung::Running),
            Self::Frozen => Some(core::Rung::Frozen),
            Self::Dozing => Some(core::Rung::Dozing),
            Self::Hibernated => Some(core::Rung::Hibernated),
            Self::Archived => Some(core::Rung::Archived),
            Self::Stopped => Some(core::Rung::Stopped),
        }
    }
}

/// A duration for the wire; one that does not fit becomes the longest that does.
fn to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration {
        seconds: 315_576_000_000,
        nanos: 0,
    })
}

fn from_wire(
    field: &'static str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<Duration>, core::PolicyError> {
    duration
        .map(|d| Duration::try_from(d).map_err(|_| core::PolicyError::NegativeDuration { field }))
        .transpose()
}

impl From<&core::Policy> for v1::Policy {
    fn from(policy: &core::Policy) -> Self {
        Self {
            idle_timeout: policy.idle_timeout.map(to_wire),
            freeze_after: policy.freeze_after.map(to_wire),
            doze_after: policy.doze_after.map(to_wire),
            hibernate_after: policy.hibernate_after.map(to_wire),
            durable: policy.durable,
            fallback: match policy.fallback {
                core::Fallback::Hold => v1::Fallback::Hold,
                core::Fallback::Fail => v1::Fallback::Fail,
                core::Fallback::ColdStart => v1::Fallback::ColdStart,
            }
            .into(),
            resume_policy: match policy.resume_policy {
                core::ResumePolicy::OnDemand => v1::ResumePolicy::OnDemand,
                core::ResumePolicy::Manual => v1::ResumePolicy::Manual,
            }
            .into(),
            wake_udp_ports: policy.wake_udp_ports.iter().map(|p| u32::from(*p)).collect(),
            shell: match policy.shell {
                core::ShellPolicy::Never => v1::ShellPolicy::Never,
                core::ShellPolicy::Always => v1::ShellPolicy::Always,
                core::ShellPolicy::Predicted => v1::ShellPolicy::Predicted,
            }
            .into(),
            wake_schedule: policy
                .wake_schedule
                .as_ref()
                .map(|schedule| schedule.as_str().to_owned())
                .unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Policy> for core::Policy {
    type Error = core::PolicyError;

    fn try_from(wire: v1::Policy) -> Result<Self, Self::Error> {
        let ports = wire
            .wake_udp_ports
            .iter()
            .map(|port| {
                u16::try_from(*port)
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| core::PolicyError::BadPort {
                        value: port.to_string(),
                    })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let policy = Self {
            idle_timeout: from_wire("idle_timeout", wire.idle_timeout)?,
            freeze_after: from_wire("freeze_after", wire.freeze_after)?,
            doze_after: from_wire("doze_after", wire.doze_after)?,
            hibernate_after: from_wire("hibernate_after", wire.hibernate_after)?,
            durable: wire.durable,
            fallback: match v1::Fallback::try_from(wire.fallback) {
                Ok(v1::Fallback::Hold | v1::Fallback::Unspecified) => core::Fallback::Hold,
                Ok(v1::Fallback::Fail) => core::Fallback::Fail,
                Ok(v1::Fallback::ColdStart) => core::Fallback::ColdStart,
                Err(_) => {
                    return Err(core::PolicyError::UnknownFallback {
                        value: wire.fallback.to_string(),
                    });
                }
            },
            resume_policy: match v1::ResumePolicy::try_from(wire.resume_policy) {
                Ok(v1::ResumePolicy::OnDemand | v1::ResumePolicy::Unspecified) => {
                    core::ResumePolicy::OnDemand
                }
                Ok(v1::ResumePolicy::Manual) => core::ResumePolicy::Manual,
                Err(_) => {
                    return Err(core::PolicyError::UnknownResumePolicy {
                        value: wire.resume_policy.to_string(),
                    });
                }
            },
            wake_udp_ports: ports,
            shell: match v1::ShellPolicy::try_from(wire.shell) {
                Ok(v1::ShellPolicy::Never | v1::ShellPolicy::Unspecified) => core::ShellPolicy::Never,
                Ok(v1::ShellPolicy::Always) => core::ShellPolicy::Always,
                Ok(v1::ShellPolicy::Predicted) => core::ShellPolicy::Predicted,
                Err(_) => {
                    return Err(core::PolicyError::UnknownShell {
                        value: wire.shell.to_string(),
                    });
                }
            },
            wake_schedule: match wire.wake_schedule.as_str() {
                "" => None,
                schedule => Some(schedule.parse()?),
            },
        };
        policy.check()?;
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_survives_the_wire() {
        let policy = core::Policy {
            idle_timeout: Some(Duration::from_millis(1500)),
            freeze_after: Some(Duration::from_secs(2)),
            doze_after: None,
            hibernate_after: Some(Duration::from_secs(7200)),
            durable: true,
            fallback: core::Fallback::Fail,
            resume_policy: core::ResumePolicy::Manual,
            wake_udp_ports: vec![53],
            shell: core::ShellPolicy::Predicted,
            wake_schedule: Some("30 8 * * *".parse().unwrap()),
        };
        assert_eq!(core::Policy::try_from(v1::Policy::from(&policy)), Ok(policy));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let negative = v1::Policy {
            idle_timeout: Some(prost_types::Duration {
                seconds: -1,
                nanos: 0,
            }),
            ..Default::default()
        };
        assert!(core::Policy::try_from(negative).is_err());
        let port = v1::Policy {
            wake_udp_ports: vec![70_000],
            ..Default::default()
        };
        assert!(core::Policy::try_from(port).is_err());
        let fallback = v1::Policy {
            fallback: 9,
            ..Default::default()
        };
        assert!(core::Policy::try_from(fallback).is_err());
        for (shell, wake_schedule) in [(9, ""), (2, "30 8 * * *"), (3, "daily")] {
            let shell = v1::Policy {
                shell,
                wake_schedule: wake_schedule.to_owned(),
                ..Default::default()
            };
            assert!(core::Policy::try_from(shell).is_err());
        }
        let resume = v1::Policy {
            resume_policy: 9,
            ..Default::default()
        };
        assert!(core::Policy::try_from(resume).is_err());
    }
}
