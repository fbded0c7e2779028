// Submits an evaluation, watches it to its end across broken connections, and prints its metrics.
//
//	evaluate [--harness H] --model M --tasks A,B [--num-gpus N] [--patience SECONDS]
//
// EVALRPC_ADDRESS sets the server: HOST:PORT, or https://HOST:PORT for TLS. EVALRPC_TLS_CA is a file with the certificates to
// trust, EVALRPC_TOKEN a token, which is sent with TLS only. Exits with 0 if the job completed, 1 if it failed or was
// cancelled, 2 if the call was invalid or refused, 3 if the server can't be reached.
package main

import (
	"context"
	cryptorand "crypto/rand"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "evalrpc/v1"
)

const (
	firstBackoff   = 100 * time.Millisecond
	longestBackoff = 5 * time.Second
)

func main() {
	os.Exit(run())
}

// run returns the exit code.
func run() int {
	harness := flag.String("harness", "", "the harness; empty is the server's default")
	model := flag.String("model", "", "the model, in the harness's terms")
	tasks := flag.String("tasks", "", "the tasks, comma-separated")
	var numGPUs *int32
	flag.Func("num-gpus", "the GPUs to hold; without it the server's default", func(text string) error {
		number, err := strconv.ParseInt(text, 10, 32)
		numGPUs = proto.Int32(int32(number))
		return err
	})
	patience := flag.Float64("patience", 60, "how many `seconds` to go on trying without a server")
	flag.Parse()

	connection, err := connect()
	if err != nil {
		fmt.Fprintln(os.Stderr, "evaluate:", err)
		return 2
	}
	defer connection.Close()

	rand.Seed(time.Now().UnixNano())
	watcher := watcher{
		connection: connection,
		client:     pb.NewEvaluationServiceClient(connection),
		backoff:    backoff{patience: time.Duration(*patience * float64(time.Second)), bound: firstBackoff},
	}
	request := &pb.EvaluateRequest{Harness: *harness, Model: *model, Tasks: strings.Split(*tasks, ","), NumGpus: numGPUs}
	// The id makes it safe to resubmit if the response is lost.
	job, err := watcher.evaluate(context.Background(), &pb.SubmitJobRequest{Request: request, RequestId: randomID()})
	if err != nil {
		return report(err)
	}
	printOutcome(job)
	if job.Status != pb.JobStatus_JOB_STATUS_COMPLETED {
		return 1
	}
	return 0
}

func connect() (*grpc.ClientConn, error) {
	address := os.Getenv("EVALRPC_ADDRESS")
	if address == "" {
		address = "127.0.0.1:50051"
	}
	// Pings detect a server that vanished silently.
	options := []grpc.DialOption{grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second})}
	if !strings.HasPrefix(address, "https://") {
		// Newer releases of gRPC have insecure.NewCredentials() in place of WithInsecure.
		return grpc.Dial(address, append(options, grpc.WithInsecure())...)
	}
	tls, err := tlsCredentials()
	if err != nil {
		return nil, err
	}
	options = append(options, grpc.WithTransportCredentials(tls))
	if token := os.Getenv("EVALRPC_TOKEN"); token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(token)))
	}
	return grpc.Dial(strings.TrimPrefix(address, "https://"), options...)
}

// tlsCredentials trusts the certificates in EVALRPC_TLS_CA, or else those that the system trusts.
func tlsCredentials() (credentials.TransportCredentials, error) {
	if ca := os.Getenv("EVALRPC_TLS_CA"); ca != "" {
		return credentials.NewClientTLSFromFile(ca, "")
	}
	return credentials.NewClientTLSFromCert(nil, ""), nil
}

// bearer is a token that is sent with every call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (b bearer) RequireTransportSecurity() bool { return true }

// watcher follows one job and tracks the last revision seen.
type watcher struct {
	connection *grpc.ClientConn
	client     pb.EvaluationServiceClient
	backoff    backoff
	job        *pb.JobInfo
	revision   int64 // all changes up to here are printed
}

// evaluate returns the finished job.
func (w *watcher) evaluate(ctx context.Context, submission *pb.SubmitJobRequest) (*pb.JobInfo, error) {
	for {
		err := w.try(ctx, submission)
		if err == nil {
			return w.job, nil
		}
		if isFinal(err) {
			return nil, err
		}
		if err := w.backoff.wait(err); err != nil {
			return nil, err
		}
		// Reconnects now; by default gRPC waits up to two minutes.
		w.connection.ResetConnectBackoff()
	}
}

// try submits the job unless already done, and watches it until it ends or the connection breaks.
func (w *watcher) try(ctx context.Context, submission *pb.SubmitJobRequest) error {
	if w.job == nil {
		job, err := w.client.SubmitJob(ctx, submission)
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "job", job.JobId)
		w.job, w.revision = job, job.Revision
		printStatus(job)
	}
	events, err := w.client.WatchJob(ctx, &pb.WatchJobRequest{JobId: w.job.JobId, AfterRevision: w.revision})
	if err != nil {
		return err
	}
	for {
		event, err := events.Recv()
		if err != nil {
			return err
		}
		w.backoff.reset()
		if event.GetJob().GetRevision() > w.revision {
			printStatus(event.Job)
		}
		w.revision = event.Revision
		if event.Terminal {
			w.job = event.Job
			return nil
		}
	}
}

// backoff is exponential with full jitter, until `patience` has passed without a success.
type backoff struct {
	patience time.Duration
	bound    time.Duration
	deadline time.Time // zero unless failing
}

func (b *backoff) reset() {
	b.bound, b.deadline = firstBackoff, time.Time{}
}

// wait waits for at least as long as the server asks for. It returns the error once `patience` is used up.
func (b *backoff) wait(err error) error {
	if b.deadline.IsZero() {
		b.deadline = time.Now().Add(b.patience)
		fmt.Fprintln(os.Stderr, "evaluate: trying again:", status.Convert(err).Message())
	}
	if time.Now().After(b.deadline) {
		return err
	}
	time.Sleep(retryDelay(err) + time.Duration(rand.Float64()*float64(b.bound)))
	if b.bound *= 2; b.bound > longestBackoff {
		b.bound = longestBackoff
	}
	return nil
}

// reasonOf returns the server's own reason. Empty: something between here and the server failed.
func reasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Domain == "evalrpc" {
			return info.Reason
		}
	}
	return ""
}

// isFinal tells whether the server itself refused the call for good; whatever else ends a call is worth another try.
func isFinal(err error) bool {
	return reasonOf(err) != "" && status.Code(err) != codes.Unavailable
}

func retryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.RetryDelay.AsDuration()
		}
	}
	return 0
}

func printStatus(job *pb.JobInfo) {
	fmt.Println(job.Revision, statusName(job))
}

func printOutcome(job *pb.JobInfo) {
	if job.Error != nil {
		fmt.Fprintf(os.Stderr, "evaluate: %s %s: %s\n", statusName(job), job.Error.Reason, job.Error.Message)
	}
	for _, result := range job.Results {
		for _, metric := range result.Metrics {
			name, standardError := metric.Metric, "-"
			if metric.Filter != "" {
				name += "," + metric.Filter
			}
			if metric.StandardError != nil {
				standardError = fmt.Sprintf("%.4f", *metric.StandardError)
			}
			fmt.Printf("%s %s %.4f %s\n", metric.Task, name, metric.GetValue(), standardError)
		}
	}
}

// statusName returns the number of a status that this program does not know yet.
func statusName(job *pb.JobInfo) string {
	return strings.TrimPrefix(job.Status.String(), "JOB_STATUS_")
}

// report prints the error with its reason and returns the exit code.
func report(err error) int {
	reason := reasonOf(err)
	if reason == "" {
		reason = "no server"
	}
	fmt.Fprintf(os.Stderr, "evaluate: %s: %s\n", reason, status.Convert(err).Message())
	if isFinal(err) {
		return 2
	}
	return 3
}

func randomID() string {
	id := make([]byte, 16)
	if _, err := cryptorand.Read(id); err != nil {
		panic(err)
	}
	return fmt.Sprintf("%x", id)
}
