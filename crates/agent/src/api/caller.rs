//! Who may call: root, the agent's own user, and whom the configuration names, by SO_PEERCRED.

use dormouse_core::Reason;
use tonic::service::Interceptor;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

/// Lets calls through by the caller's UID.
#[derive(Debug, Clone)]
pub struct AllowedCallers {
    uids: Vec<u32>,
}

impl AllowedCallers {
    /// Root, this process's own user, and `also`.
    #[must_use]
    pub fn new(also: &[u32]) -> Self {
        let mut uids = vec![0, nix::unistd::geteuid().as_raw()];
        uids.extend_from_slice(also);
        Self { uids }
    }
}

impl Interceptor for AllowedCallers {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let uid = request
            .extensions()
            .get::<UdsConnectInfo>()
            .and_then(|info| info.peer_cred)
            .map(|c| c.uid());
        match uid {
            Some(uid) if self.uids.contains(&uid) => Ok(request),
            Some(uid) => Err(dormouse_rpc::status(
                Reason::PermissionDenied,
                format!("uid {uid} may not use this socket; call as root, or add it to api.allowed_uids"),
            )),
            None => Err(dormouse_rpc::status(
                Reason::PermissionDenied,
                "the caller's identity is not known",
            )),
        }
    }
}
