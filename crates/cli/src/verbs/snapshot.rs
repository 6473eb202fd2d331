//! `dormouse snapshot`.

mod archive;
mod create;
mod keep;
mod look;
mod verify;

use std::process::ExitCode;

use crate::args::{Global, SnapshotArgs, SnapshotVerb};
use crate::error::CliError;

pub(super) async fn snapshot(global: &Global, args: SnapshotArgs) -> Result<ExitCode, CliError> {
    match args.verb {
        SnapshotVerb::Create(args) => create::create(global, args).await,
        SnapshotVerb::Ls { pod } => look::ls(global, pod).await,
        SnapshotVerb::Inspect { id } => look::inspect(global, id).await,
        SnapshotVerb::Diff { a, b } => look::diff(global, a, b).await,
        SnapshotVerb::Verify(ids) => verify::verify(global, &ids.ids).await,
        SnapshotVerb::Pin(ids) => keep::pin(global, &ids.ids).await,
        SnapshotVerb::Unpin(ids) => keep::unpin(global, &ids.ids).await,
        SnapshotVerb::Rm { ids, force } => keep::rm(global, &ids.ids, force).await,
        SnapshotVerb::Prune { dry_run, all } => keep::prune(global, dry_run, all).await,
        SnapshotVerb::Fsck { repair, full } => keep::fsck(global, repair, full).await,
        SnapshotVerb::Export { id, file } => archive::export(global, id, &file).await,
        SnapshotVerb::Import { file } => archive::import(global, &file).await,
    }
}
