// Submits an evaluation, watches it to its end across broken connections, and prints its metrics.
//
//	evaluate --harness H --model M --tasks A,B [--num-gpus N] [--patience SECONDS]
//
// EVALRPC_ADDRESS sets the server. Exits with 0 if the job completed, 1 if it failed or was cancelled, 2 if the call was
// invalid or refused, 3 if the server can't be reached.
package main

import (
	"context"
	cryptorand "crypto/rand"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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
	numGPUs := flag.Int("num-gpus", 1, "the GPUs to hold")
	patience := flag.Float64("patience", 60, "how many `seconds` to go on trying without a server")
	flag.Parse()

	connection, err := connect()
	if err != nil {
		return report(err)
	}
	defer connection.Close()

	rand.Seed(time.Now().UnixNano())
	watcher := watcher{
		connection: connection,
		client:     pb.NewEvaluationServiceClient(connection),
		backoff:    backoff{patience: time.Duration(*patience * float64(time.Second)), bound: firstBackoff},
	}
	job, err := watcher.evaluate(context.Background(), &pb.SubmitJobRequest{
		Request: &pb.EvaluateRequest{
			Harness: *harness,
			Model:   *model,
			Tasks:   strings.Split(*tasks, ","),
			NumGpus: proto.Int32(int32(*numGPUs)),
		},
		// The id makes it safe to resubmit if the response is lost.
		RequestId: randomID(),
	})
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
	// Newer releases of gRPC have insecure.NewCredentials() in place of WithInsecure.
	return grpc.Dial(address, grpc.WithInsecure(),
		// Detects a server that vanished silently, even while a job sends no events.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second}))
}

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
		if status.Code(err) != codes.Unavailable {
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

// wait returns the error once `patience` is used up.
func (b *backoff) wait(err error) error {
	if b.deadline.IsZero() {
		b.deadline = time.Now().Add(b.patience)
		fmt.Fprintln(os.Stderr, "evaluate: no server, trying again:", status.Convert(err).Message())
	}
	if time.Now().After(b.deadline) {
		return err
	}
	time.Sleep(time.Duration(rand.Float64() * float64(b.bound)))
	if b.bound *= 2; b.bound > longestBackoff {
		b.bound = longestBackoff
	}
	return nil
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
			name, stderr := metric.Metric, "-"
			if metric.Filter != "" {
				name += "," + metric.Filter
			}
			if metric.Stderr != nil {
				stderr = fmt.Sprintf("%.4f", *metric.Stderr)
			}
			fmt.Printf("%s %s %.4f %s\n", metric.Task, name, metric.Value, stderr)
		}
	}
}

func statusName(job *pb.JobInfo) string {
	return strings.TrimPrefix(job.Status.String(), "JOB_STATUS_")
}

// report prints the error with its reason and returns the exit code.
func report(err error) int {
	failure := status.Convert(err)
	reason := ""
	for _, detail := range failure.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			reason = " " + info.Reason
		}
	}
	fmt.Fprintf(os.Stderr, "evaluate: %s%s: %s\n", failure.Code(), reason, failure.Message())
	if failure.Code() == codes.Unavailable {
		return 3
	}
	return 2
}

func randomID() string {
	id := make([]byte, 16)
	if _, err := cryptorand.Read(id); err != nil {
		panic(err)
	}
	return fmt.Sprintf("%x", id)
}
