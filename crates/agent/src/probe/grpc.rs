//! gRPC probes: the health protocol, in plain text.

use std::net::SocketAddr;

use hyper_util::rt::TokioIo;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Failed, Run};

/// The largest answer that is read, in bytes; the protocol's has two.
const MAX_ANSWER: usize = 4 << 10;

/// Asks whether a service serves.
pub(super) async fn check(run: &Run, to: SocketAddr, service: &str) -> Result<(), Failed> {
    // Made before, so that what cannot be reached is told apart from what does not answer.
    let mut connection = Some(run.dial(to).await?);
    let channel = Endpoint::from_shared(format!("http://{to}"))?
        .user_agent(super::USER_AGENT)?
        .connect_with_connector(tower::service_fn(move |_| {
            let connection = connection.take();
            async move {
                connection
                    .map(TokioIo::new)
                    .ok_or(std::io::ErrorKind::ConnectionReset)
                    .map_err(std::io::Error::from)
            }
        }))
        .await?;
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = HealthClient::new(channel)
        .max_decoding_message_size(MAX_ANSWER)
        .check(request)
        .await
        .map_err(|status| Failed::Health {
            code: status.code(),
            message: status.message().to_owned(),
        })?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        ServingStatus::NotServing => Err(Failed::NotServing("NOT_SERVING")),
        ServingStatus::ServiceUnknown => Err(Failed::NotServing("SERVICE_UNKNOWN")),
        ServingStatus::Unknown => Err(Failed::NotServing("UNKNOWN")),
    }
}
