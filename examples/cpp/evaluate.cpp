// Submits an evaluation, watches it to its end across broken connections, and prints its metrics.
//
//   evaluate [--harness H] --model M --tasks A,B [--num-gpus N] [--patience SECONDS]
//
// EVALRPC_ADDRESS sets the server: HOST:PORT, or https://HOST:PORT for TLS. EVALRPC_TLS_CA is a file with the certificates to
// trust, EVALRPC_TOKEN a token, which is sent with TLS only. Exits with 0 if the job completed, 1 if it failed or was
// cancelled, 2 if the call was invalid or refused, 3 if the server can't be reached.

#include <getopt.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "error_details.pb.h"
#include "evalrpc/v1/evaluation_service.grpc.pb.h"

namespace {

using namespace evalrpc::v1;
using std::chrono::duration;
using std::chrono::steady_clock;

constexpr duration<double> kFirstBackoff{0.1};
constexpr duration<double> kLongestBackoff{5};

struct Flags {
  EvaluateRequest request;
  duration<double> patience{60};
};

// Returns the first detail of this kind that came with the error; the default if there is none.
template <typename Detail>
Detail DetailOf(const grpc::Status& error) {
  google::rpc::Status status;
  Detail detail;
  if (!status.ParseFromString(error.error_details())) return detail;
  for (const auto& any : status.details()) {
    if (any.UnpackTo(&detail)) break;
  }
  return detail;
}

// Returns the server's own reason. Empty: something between here and the server failed.
std::string ReasonOf(const grpc::Status& error) {
  const auto info = DetailOf<google::rpc::ErrorInfo>(error);
  return info.domain() == "evalrpc" ? info.reason() : "";
}

// Whether the server itself refused the call for good; whatever else ends a call is worth another try.
bool IsFinal(const grpc::Status& error) {
  return !ReasonOf(error).empty() && error.error_code() != grpc::StatusCode::UNAVAILABLE;
}

duration<double> RetryDelay(const grpc::Status& error) {
  const auto delay = DetailOf<google::rpc::RetryInfo>(error).retry_delay();
  return duration<double>(delay.seconds() + delay.nanos() / 1e9);
}

// Exponential backoff with full jitter, until `patience` has passed without a success.
class Backoff {
 public:
  explicit Backoff(duration<double> patience) : patience_(patience) {}

  void Reset() {
    bound_ = kFirstBackoff;
    deadline_.reset();
  }

  // Waits for at least as long as the server asks for. Returns false once `patience` is used up.
  bool Wait(const grpc::Status& error) {
    const auto now = steady_clock::now();
    if (!deadline_) {
      deadline_ = now + std::chrono::duration_cast<steady_clock::duration>(patience_);
      std::cerr << "evaluate: trying again: " << error.error_message() << std::endl;
    }
    if (now >= *deadline_) return false;
    std::this_thread::sleep_for(RetryDelay(error) + bound_ * std::uniform_real_distribution<>()(random_));
    bound_ = std::min(2 * bound_, kLongestBackoff);
    return true;
  }

 private:
  duration<double> patience_;
  duration<double> bound_ = kFirstBackoff;
  std::optional<steady_clock::time_point> deadline_;
  std::mt19937 random_{std::random_device()()};
};

// Returns a variable of the environment. Empty: it is not set.
std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// Throws std::invalid_argument if the file of certificates can't be read.
std::shared_ptr<grpc::ChannelCredentials> TlsCredentials() {
  grpc::SslCredentialsOptions options;
  if (const auto ca = Variable("EVALRPC_TLS_CA"); !ca.empty()) {
    std::ifstream file(ca);
    if (!file) throw std::invalid_argument("can't read " + ca);
    options.pem_root_certs.assign(std::istreambuf_iterator<char>(file), {});
  }
  const auto credentials = grpc::SslCredentials(options);
  const auto token = Variable("EVALRPC_TOKEN");
  return token.empty() ? credentials : grpc::CompositeChannelCredentials(credentials, grpc::AccessTokenCredentials(token));
}

std::shared_ptr<grpc::Channel> Connect() {
  grpc::ChannelArguments arguments;
  // By default gRPC waits up to two minutes before it reconnects to a restarted server.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5000);
  // Pings detect a server that vanished silently.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  const std::string https = "https://";
  const auto address = Variable("EVALRPC_ADDRESS");
  if (address.rfind(https, 0) == 0) {
    return grpc::CreateCustomChannel(address.substr(https.size()), TlsCredentials(), arguments);
  }
  return grpc::CreateCustomChannel(address.empty() ? "127.0.0.1:50051" : address, grpc::InsecureChannelCredentials(), arguments);
}

// A status that this program does not know yet is shown by its number.
std::string StatusName(const JobInfo& job) {
  const std::string prefix = "JOB_STATUS_";
  const std::string name = JobStatus_Name(job.status());
  return name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : std::to_string(job.status());
}

// Follows one job and tracks the last revision seen.
class Watcher {
 public:
  Watcher(std::shared_ptr<grpc::Channel> channel, duration<double> patience)
      : channel_(std::move(channel)),
        server_(EvaluationService::NewStub(channel_)),
        backoff_(patience) {}

  // Leaves the finished job in `job()`, unless it returns an error.
  grpc::Status Evaluate(const SubmitJobRequest& submission) {
    for (;;) {
      const auto status = Try(submission);
      if (status.ok() || IsFinal(status) || !backoff_.Wait(status)) return status;
      // gRPC connects only during a call into it, so a mere sleep would delay the reconnect.
      channel_->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(5));
    }
  }

  const JobInfo& job() const { return job_; }

 private:
  // Submits the job unless already done, and watches it until it ends or the connection breaks.
  grpc::Status Try(const SubmitJobRequest& submission) {
    if (job_.job_id().empty()) {
      grpc::ClientContext context;
      if (auto status = server_->SubmitJob(&context, submission, &job_); !status.ok()) return status;
      revision_ = job_.revision();
      std::cerr << "job " << job_.job_id() << std::endl;
      PrintStatus();
    }
    WatchJobRequest request;
    request.set_job_id(job_.job_id());
    request.set_after_revision(revision_);
    grpc::ClientContext context;
    const auto events = server_->WatchJob(&context, request);
    for (JobEvent event; events->Read(&event);) {
      backoff_.Reset();
      if (event.has_job()) job_ = event.job();
      if (job_.revision() > revision_) PrintStatus();
      revision_ = event.revision();
    }
    return events->Finish();  // OK comes only after the terminal event
  }

  void PrintStatus() const { std::cout << job_.revision() << ' ' << StatusName(job_) << std::endl; }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<EvaluationService::Stub> server_;
  Backoff backoff_;
  JobInfo job_;
  int64_t revision_ = 0;  // all changes up to here are printed
};

void PrintOutcome(const JobInfo& job) {
  if (job.has_error()) {
    std::cerr << "evaluate: " << StatusName(job) << ' ' << job.error().reason() << ": " << job.error().message() << std::endl;
  }
  std::cout << std::fixed << std::setprecision(4);
  for (const auto& [model, result] : job.results()) {
    for (const auto& metric : result.metrics()) {
      std::cout << metric.task() << ' ' << metric.metric();
      if (!metric.filter().empty()) std::cout << ',' << metric.filter();
      std::cout << ' ' << metric.value() << ' ';
      if (metric.has_standard_error()) {
        std::cout << metric.standard_error() << std::endl;
      } else {
        std::cout << '-' << std::endl;
      }
    }
  }
}

// Prints the error with its reason and returns the exit code.
int Report(const grpc::Status& error) {
  const auto reason = ReasonOf(error);
  std::cerr << "evaluate: " << (reason.empty() ? "no server" : reason) << ": " << error.error_message() << std::endl;
  return IsFinal(error) ? 2 : 3;
}

// Throws std::logic_error if the command line is invalid.
Flags ParseFlags(int argc, char** argv) {
  const option options[] = {{"harness", required_argument, nullptr, 'h'},  {"model", required_argument, nullptr, 'm'},
                            {"tasks", required_argument, nullptr, 't'},    {"num-gpus", required_argument, nullptr, 'g'},
                            {"patience", required_argument, nullptr, 'p'}, {}};
  Flags flags;
  for (int flag; (flag = getopt_long(argc, argv, "", options, nullptr)) != -1;) {
    switch (flag) {
      case 'h': flags.request.set_harness(optarg); break;
      case 'm': flags.request.set_model(optarg); break;
      case 'g': flags.request.set_num_gpus(std::stoi(optarg)); break;
      case 'p': flags.patience = duration<double>(std::stod(optarg)); break;
      case 't': {
        std::istringstream tasks(optarg);
        for (std::string task; std::getline(tasks, task, ',');) flags.request.add_tasks(task);
        break;
      }
      default: throw std::invalid_argument("wrong flag");
    }
  }
  return flags;
}

// A fresh id makes it safe to resubmit if the response is lost.
std::string RandomId() {
  std::random_device random;
  std::ostringstream id;
  for (int i = 0; i < 4; ++i) id << std::hex << std::setw(8) << std::setfill('0') << random();
  return id.str();
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  std::shared_ptr<grpc::Channel> channel;
  try {
    flags = ParseFlags(argc, argv);
    channel = Connect();
  } catch (const std::logic_error& error) {
    std::cerr << "evaluate: wrong call (" << error.what() << ')' << std::endl;
    return 2;
  }
  SubmitJobRequest submission;
  *submission.mutable_request() = flags.request;
  submission.set_request_id(RandomId());

  Watcher watcher(channel, flags.patience);
  if (const auto status = watcher.Evaluate(submission); !status.ok()) return Report(status);
  PrintOutcome(watcher.job());
  return watcher.job().status() == JOB_STATUS_COMPLETED ? 0 : 1;
}
