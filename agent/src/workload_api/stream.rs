//! Answers that go on: again whenever they change, as long as who asks is who it was.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::ServerStreamingService;
use tonic::{Code, Request, Response, Status};

use super::answers::Caller;
use super::messages::Empty;

/// How late it is noticed that who asks is somebody else by now, or nobody: resources and cgroups change at any time.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The least time between two looks: SVIDs may live for seconds.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(200);
/// Where nothing is to be renewed: whoever has it is told of changes when they come.
pub(super) const BUNDLES_AGAIN: Duration = Duration::from_secs(60);
/// Answers that wait for a client that does not read: then nothing is made for it.
const WAITING_MAX: usize = 1;

/// What can be streamed.
pub(super) trait Streamed: Message + Clone + PartialEq + 'static {
    /// What there is now, and when there will be something else.
    fn now(caller: &Caller) -> impl Future<Output = Result<(Self, SystemTime), Status>> + Send;
}

/// Streams one kind of answer.
pub(super) struct Streams<A> {
    caller: Arc<Caller>,
    kind: PhantomData<A>,
}

impl<A> Streams<A> {
    pub(super) fn new(caller: Arc<Caller>) -> Self {
        Self { caller, kind: PhantomData }
    }
}

impl<A: Streamed> ServerStreamingService<Empty> for Streams<A> {
    type Response = A;
    type ResponseStream = ReceiverStream<Result<A, Status>>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, _request: Request<Empty>) -> Self::Future {
        let caller = Arc::clone(&self.caller);
        Box::pin(async move {
            let first = A::now(&caller).await;
            caller.record(first.as_ref().err())?;
            let first = first?;
            let (to, from) = mpsc::channel(WAITING_MAX);
            tokio::spawn(follow(caller, first, to));
            Ok(Response::new(ReceiverStream::new(from)))
        })
    }
}

async fn follow<A: Streamed>(
    caller: Arc<Caller>,
    (mut last, mut again_at): (A, SystemTime),
    to: mpsc::Sender<Result<A, Status>>,
) {
    let mut changed = caller.changed();
    if to.send(Ok(last.clone())).await.is_err() {
        return;
    }
    loop {
        let wait = again_at.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::select! {
            () = to.closed() => return,
            changed = changed.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(wait.clamp(LOOK_EVERY_MIN, LOOK_EVERY)) => {}
        }
        let next = match A::now(&caller).await {
            Ok((next, at)) => {
                again_at = at;
                if next == last {
                    continue;
                }
                last = next.clone();
                Ok(next)
            }
            // What it has lives on; it is asked for again.
            Err(status) if status.code() == Code::Unavailable => continue,
            Err(status) => Err(status),
        };
        let is_end = next.is_err();
        if to.send(next).await.is_err() || is_end {
            return;
        }
    }
}
