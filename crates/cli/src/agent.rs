//! The agent's client, with deadlines and retries.

use std::future::Future;
use std::time::Duration;

use dormouse_core::{Reason, format_duration};
use dormouse_rpc::{NodeClient, connect, reason_of, v1};
use tonic::{Code, Request, Response, Status};

use crate::args::Global;
use crate::error::CliError;

/// How long the agent may take to answer from memory.
const QUERY_DEADLINE: Duration = Duration::from_secs(10);

/// How often an order is given again if the connection breaks; its operation id makes that safe.
const TRIES: u32 = 3;

/// How long to wait before giving an order again.
const PAUSE: Duration = Duration::from_millis(200);

/// A list as long as a node can hold.
const MAX_MESSAGE: usize = 32 << 20;

/// The agent.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    client: NodeClient,
    /// How long an order may take.
    timeout: Duration,
}

impl Agent {
    pub(crate) async fn connect(global: &Global) -> Result<Self, CliError> {
        let client = connect(&global.socket)
            .await?
            .max_decoding_message_size(MAX_MESSAGE);
        Ok(Self {
            client,
            timeout: global.timeout,
        })
    }

    /// A copy of the client, for streams.
    pub(crate) fn client(&self) -> NodeClient {
        self.client.clone()
    }

    pub(crate) async fn list(&self, request: v1::ListRequest) -> Result<Vec<v1::Pod>, CliError> {
        let mut client = self.client();
        let answer = within(QUERY_DEADLINE, request, async move |request| {
            client.list(request).await
        })
        .await;
        let mut pods = answer.map_err(|status| refused("list of pods", status))?.pods;
        pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        Ok(pods)
    }

    pub(crate) async fn node(&self) -> Result<v1::get_node_response::Node, CliError> {
        let mut client = self.client();
        let request = v1::GetNodeRequest {};
        let answer = within(QUERY_DEADLINE, request, async move |request| {
            client.get_node(request).await
        })
        .await;
        let node = answer
            .map_err(|status| refused("description of the node", status))?
            .node;
        node.ok_or_else(|| CliError::Empty {
            what: "GetNode".to_owned(),
            lacks: "node",
        })
    }

    /// Gives an order, again if the connection breaks. `call` makes one attempt.
    pub(crate) async fn order<Q, A, F>(
        &self,
        request: Q,
        call: impl Fn(NodeClient, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let end = tokio::time::Instant::now() + self.timeout;
        for attempt in 1.. {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            let answer = within(left, request.clone(), |request| call(self.client(), request)).await;
            match answer {
                Err(status) if attempt < TRIES && broke(&status) => tokio::time::sleep(PAUSE).await,
                answer => return answer,
            }
        }
        Err(Status::internal("no attempt was made"))
    }
}

/// Makes one call, with a deadline on both sides.
async fn within<Q, A, F>(limit: Duration, request: Q, call: impl FnOnce(Request<Q>) -> F) -> Result<A, Status>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let late = || {
        dormouse_rpc::status(
            Reason::DeadlineExceeded,
            format!(
                "no answer within {}; the order may still be carried out (--timeout gives it longer)",
                format_duration(Duration::from_secs_f64((limit.as_secs_f64() * 1e3).round() / 1e3)),
            ),
        )
    };
    let mut request = Request::new(request);
    request.set_timeout(limit);
    match tokio::time::timeout(limit, call(request)).await {
        // This is how the transport says that the same deadline has passed on its own watch.
        Ok(Err(status)) if status.code() == Code::Cancelled && reason_of(&status).is_none() => Err(late()),
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(late()),
    }
}

/// Whether the connection broke before there was an answer.
fn broke(status: &Status) -> bool {
    status.code() == Code::Unavailable && reason_of(status).is_none()
}

pub(crate) fn refused(what: &str, status: Status) -> CliError {
    CliError::Refused {
        what: what.to_owned(),
        status: Box::new(status),
    }
}
