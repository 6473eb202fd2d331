//! The pod behind a container.

use dormouse_sentry::record::RecordError;
use dormouse_sentry::{ContainerId, Record, RunDir, SandboxId, Switch};

use super::Context;

/// What the run directory says of a container's pod.
pub(super) enum Pod {
    /// Not registered: not ours, or registered before the run directory was emptied.
    Unknown,
    /// Registered.
    Known {
        container: ContainerId,
        switch: Switch,
        record: Box<Record>,
    },
    /// Registered, but its record cannot be read.
    Unreadable {
        container: ContainerId,
        sandbox: SandboxId,
        dir: RunDir,
        error: RecordError,
    },
}

pub(super) fn find(context: &Context<'_>) -> Pod {
    let (Some(container), Some(dir)) = (context.container(), context.config.dir()) else {
        return Pod::Unknown;
    };
    let Ok(Some(sandbox)) = dir.find(&container) else {
        return Pod::Unknown;
    };
    let switch = Switch::open(&dir, &sandbox);
    match switch.record() {
        Ok(record) => {
            context.runs_under(&record.runsc);
            Pod::Known {
                container,
                switch,
                record: Box::new(record),
            }
        }
        Err(error) if error.is_missing() => Pod::Unknown,
        Err(error) => Pod::Unreadable {
            container,
            sandbox,
            dir,
            error,
        },
    }
}
