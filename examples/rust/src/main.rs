//! Submits an evaluation, watches it to its end across broken connections, and prints its metrics.
//!
//!     evaluate [--harness H] --model M --tasks A,B [--num-gpus N] [--patience SECONDS]
//!
//! EVALRPC_ADDRESS sets the server: HOST:PORT, or https://HOST:PORT for TLS. EVALRPC_TLS_CA is a file with the certificates to
//! trust, EVALRPC_TOKEN a token, which is sent with TLS only. Exits with 0 if the job completed, 1 if it failed or was
//! cancelled, 2 if the call was invalid or refused, 3 if the server can't be reached.

use std::env;
use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::service::Interceptor;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use pb::evaluation_service_client::EvaluationServiceClient;
use pb::{EvaluateRequest, JobInfo, JobStatus, SubmitJobRequest, WatchJobRequest};

mod pb {
    tonic::include_proto!("evalrpc.v1");
}

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let (request, patience, server) = match parse_flags().and_then(|(request, patience)| Ok((request, patience, connect()?))) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("evaluate: {error}");
            return ExitCode::from(2);
        }
    };
    // The id makes it safe to resubmit if the response is lost.
    let request_id = format!("{:032x}", rand::random::<u128>());
    let submission = SubmitJobRequest { request: Some(request), request_id, ..Default::default() };
    let mut watcher = Watcher { server, backoff: Backoff::new(patience), job_id: String::new(), revision: 0 };
    match watcher.evaluate(&submission).await {
        Ok(job) => {
            print_outcome(&job);
            ExitCode::from(if job.status == JobStatus::Completed as i32 { 0 } else { 1 })
        }
        Err(error) => {
            eprintln!("evaluate: {}: {}", reason_of(&error).as_deref().unwrap_or("no server"), error.message());
            ExitCode::from(if is_final(&error) { 2 } else { 3 })
        }
    }
}

fn parse_flags() -> Result<(EvaluateRequest, Duration), Box<dyn Error>> {
    let mut request = EvaluateRequest::default();
    let mut patience = Duration::from_secs(60);
    let mut arguments = env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or(format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--harness" => request.harness = value,
            "--model" => request.model = value,
            "--tasks" => request.tasks = value.split(',').map(String::from).collect(),
            "--num-gpus" => request.num_gpus = Some(value.parse()?),
            "--patience" => patience = Duration::try_from_secs_f64(value.parse()?)?,
            _ => return Err(format!("there is no flag {flag}").into()),
        }
    }
    Ok((request, patience))
}

type Server = EvaluationServiceClient<InterceptedService<Channel, SignIn>>;

/// Connects with the first call, and again with each call after the connection broke.
fn connect() -> Result<Server, Box<dyn Error>> {
    let address = env::var("EVALRPC_ADDRESS").unwrap_or("127.0.0.1:50051".to_string());
    let uses_tls = address.starts_with("https://");
    let url = if uses_tls { address } else { format!("http://{address}") };
    // Pings detect a server that vanished silently.
    let mut endpoint = Endpoint::from_shared(url)?.http2_keep_alive_interval(Duration::from_secs(30));
    let mut sign_in = SignIn(None);
    if uses_tls {
        endpoint = endpoint.tls_config(tls_config()?)?;
        if let Ok(token) = env::var("EVALRPC_TOKEN") {
            sign_in = SignIn(Some(format!("Bearer {token}").parse()?));
        }
    }
    Ok(EvaluationServiceClient::with_interceptor(endpoint.connect_lazy(), sign_in))
}

fn tls_config() -> Result<ClientTlsConfig, Box<dyn Error>> {
    let config = ClientTlsConfig::new();
    Ok(match env::var("EVALRPC_TLS_CA") {
        Ok(ca) => config.ca_certificate(Certificate::from_pem(fs::read(ca)?)),
        Err(_) => config.with_native_roots(),
    })
}

/// Sends the token, if there is one, with every call.
#[derive(Clone)]
struct SignIn(Option<MetadataValue<Ascii>>);

impl Interceptor for SignIn {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = &self.0 {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        Ok(request)
    }
}

/// Follows one job and tracks the last revision seen.
struct Watcher {
    server: Server,
    backoff: Backoff,
    /// Empty until submitted.
    job_id: String,
    /// All changes up to this one are printed.
    revision: i64,
}

impl Watcher {
    /// Returns the finished job.
    async fn evaluate(&mut self, submission: &SubmitJobRequest) -> Result<JobInfo, Status> {
        loop {
            match self.attempt(submission).await {
                Ok(job) => return Ok(job),
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => self.backoff.wait(error).await?,
            }
        }
    }

    /// Submits the job unless already done, and watches it until it ends or the connection breaks.
    async fn attempt(&mut self, submission: &SubmitJobRequest) -> Result<JobInfo, Status> {
        if self.job_id.is_empty() {
            let job = self.server.submit_job(submission.clone()).await?.into_inner();
            eprintln!("job {}", job.job_id);
            print_status(&job);
            (self.job_id, self.revision) = (job.job_id, job.revision);
        }
        let (job_id, after_revision) = (self.job_id.clone(), self.revision);
        let request = WatchJobRequest { job_id, after_revision, ..Default::default() };
        let mut events = self.server.watch_job(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            self.backoff.reset();
            if let Some(job) = event.job.as_ref().filter(|job| job.revision > self.revision) {
                print_status(job);
            }
            self.revision = event.revision;
            if let (true, Some(job)) = (event.terminal, event.job) {
                return Ok(job);
            }
        }
        Err(Status::unavailable("the stream ended before the job"))
    }
}

/// Exponential backoff with full jitter, until `patience` has passed without a success.
struct Backoff {
    patience: Duration,
    bound: Duration,
    failing_since: Option<Instant>,
}

impl Backoff {
    fn new(patience: Duration) -> Self {
        Self { patience, bound: FIRST_BACKOFF, failing_since: None }
    }

    fn reset(&mut self) {
        *self = Self::new(self.patience);
    }

    /// Waits for at least as long as the server asks for. Returns the error once `patience` is used up.
    async fn wait(&mut self, error: Status) -> Result<(), Status> {
        let since = *self.failing_since.get_or_insert_with(|| {
            eprintln!("evaluate: trying again: {}", error.message());
            Instant::now()
        });
        if since.elapsed() >= self.patience {
            return Err(error);
        }
        tokio::time::sleep(retry_delay(&error) + self.bound.mul_f64(rand::random())).await;
        self.bound = LONGEST_BACKOFF.min(2 * self.bound);
        Ok(())
    }
}

/// Returns the server's own reason. None: something between here and the server failed.
fn reason_of(error: &Status) -> Option<String> {
    error.get_details_error_info().filter(|info| info.domain == "evalrpc").map(|info| info.reason)
}

/// Whether the server itself refused the call for good; whatever else ends a call is worth another try.
fn is_final(error: &Status) -> bool {
    reason_of(error).is_some() && error.code() != Code::Unavailable
}

fn retry_delay(error: &Status) -> Duration {
    error.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default()
}

fn print_status(job: &JobInfo) {
    println!("{} {}", job.revision, status_name(job));
}

fn print_outcome(job: &JobInfo) {
    if let Some(error) = &job.error {
        eprintln!("evaluate: {} {}: {}", status_name(job), error.reason, error.message);
    }
    for metric in job.results.values().flat_map(|result| &result.metrics) {
        let name =
            if metric.filter.is_empty() { metric.metric.clone() } else { format!("{},{}", metric.metric, metric.filter) };
        let standard_error = metric.standard_error.map_or("-".to_string(), |error| format!("{error:.4}"));
        println!("{} {name} {:.4} {standard_error}", metric.task, metric.value());
    }
}

/// A status that this program does not know yet is shown by its number.
fn status_name(job: &JobInfo) -> String {
    match JobStatus::try_from(job.status) {
        Ok(status) => status.as_str_name().trim_start_matches("JOB_STATUS_").to_string(),
        Err(_) => job.status.to_string(),
    }
}
