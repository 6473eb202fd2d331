//! One driver for whatever runtime a pod has.

use std::path::Path;

use dormouse_core::WakeSource;

use crate::driver::{
    Cancel, Capabilities, DozeReport, Driver, DriverError, FreezeReport, Guest, PrefetchReport, Probe,
    ReleaseReport, Resident, RestoreReport, RuntimeKind, SaveReport, ShellFound, ShellReport, WakeReport,
};
use crate::gvisor::Gvisor;
use crate::kata::Kata;
use crate::runc::Runc;

/// The driver of one runtime, chosen by the pod's runtime type.
#[derive(Debug, Clone)]
pub enum AnyDriver {
    /// gVisor.
    Gvisor(Gvisor),
    /// Kata Containers.
    Kata(Kata),
    /// runc.
    Runc(Runc),
}

/// Passes a verb on to the driver inside.
macro_rules! pass_on {
    ($self:ident, $driver:ident => $call:expr) => {
        match $self {
            AnyDriver::Gvisor($driver) => $call,
            AnyDriver::Kata($driver) => $call,
            AnyDriver::Runc($driver) => $call,
        }
    };
}

impl Driver for AnyDriver {
    fn kind(&self) -> RuntimeKind {
        pass_on!(self, d => d.kind())
    }

    async fn capabilities(&self, guest: &Guest) -> Capabilities {
        pass_on!(self, d => d.capabilities(guest).await)
    }

    async fn freeze(&self, guest: &Guest) -> Result<FreezeReport, DriverError> {
        pass_on!(self, d => d.freeze(guest).await)
    }

    async fn doze(&self, guest: &Guest, cancel: &Cancel) -> Result<DozeReport, DriverError> {
        pass_on!(self, d => d.doze(guest, cancel).await)
    }

    async fn wake(&self, guest: &Guest) -> Result<WakeReport, DriverError> {
        pass_on!(self, d => d.wake(guest).await)
    }

    async fn prefetch(
        &self,
        guest: &Guest,
        source: WakeSource,
        cancel: &Cancel,
    ) -> Result<PrefetchReport, DriverError> {
        pass_on!(self, d => d.prefetch(guest, source, cancel).await)
    }

    async fn learn(&self, guest: &Guest, cancel: &Cancel) -> Result<(), DriverError> {
        pass_on!(self, d => d.learn(guest, cancel).await)
    }

    fn learns(&self) -> bool {
        pass_on!(self, d => d.learns())
    }

    async fn housekeeping_thaw(&self, guest: &Guest) -> Result<(), DriverError> {
        pass_on!(self, d => d.housekeeping_thaw(guest).await)
    }

    async fn housekeeping_freeze(&self, guest: &Guest, cancel: &Cancel) -> Result<(), DriverError> {
        pass_on!(self, d => d.housekeeping_freeze(guest, cancel).await)
    }

    async fn probe(&self, guest: &Guest) -> Result<Probe, DriverError> {
        pass_on!(self, d => d.probe(guest).await)
    }

    async fn save(&self, guest: &Guest, image: &Path, cancel: &Cancel) -> Result<SaveReport, DriverError> {
        pass_on!(self, d => d.save(guest, image, cancel).await)
    }

    async fn snapshot(&self, guest: &Guest, image: &Path) -> Result<SaveReport, DriverError> {
        pass_on!(self, d => d.snapshot(guest, image).await)
    }

    async fn keep(&self, guest: &Guest) -> Result<(), DriverError> {
        pass_on!(self, d => d.keep(guest).await)
    }

    async fn release(&self, guest: &Guest, snapshot: &str) -> Result<ReleaseReport, DriverError> {
        pass_on!(self, d => d.release(guest, snapshot).await)
    }

    async fn cold_start(&self, guest: &Guest) -> Result<RestoreReport, DriverError> {
        pass_on!(self, d => d.cold_start(guest).await)
    }

    async fn restore(&self, guest: &Guest, image: &Path) -> Result<RestoreReport, DriverError> {
        pass_on!(self, d => d.restore(guest, image).await)
    }

    async fn make_shell(&self, guest: &Guest, cancel: &Cancel) -> Result<ShellReport, DriverError> {
        pass_on!(self, d => d.make_shell(guest, cancel).await)
    }

    async fn end_shell(&self, guest: &Guest) -> Result<(), DriverError> {
        pass_on!(self, d => d.end_shell(guest).await)
    }

    async fn find_shell(&self, guest: &Guest) -> Result<ShellFound, DriverError> {
        pass_on!(self, d => d.find_shell(guest).await)
    }

    async fn resident(&self, guest: &Guest) -> Result<Resident, DriverError> {
        pass_on!(self, d => d.resident(guest).await)
    }
}
