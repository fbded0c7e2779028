import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import evalrpc.example.ErrorInfo;
import evalrpc.example.RetryInfo;
import evalrpc.v1.EvaluateRequest;
import evalrpc.v1.EvaluationServiceGrpc;
import evalrpc.v1.EvaluationServiceGrpc.EvaluationServiceBlockingStub;
import evalrpc.v1.JobInfo;
import evalrpc.v1.JobStatus;
import evalrpc.v1.SubmitJobRequest;
import evalrpc.v1.WatchJobRequest;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.time.Duration;
import java.time.Instant;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.UUID;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * Submits an evaluation, watches it to its end across broken connections, and prints its metrics.
 *
 * <pre>java -jar evaluate.jar [--harness H] --model M --tasks A,B [--num-gpus N] [--patience SECONDS]</pre>
 *
 * EVALRPC_ADDRESS sets the server: HOST:PORT, or https://HOST:PORT for TLS. EVALRPC_TLS_CA is a file with the certificates to
 * trust, EVALRPC_TOKEN a token, which is sent with TLS only. Exits with 0 if the job completed, 1 if it failed or was
 * cancelled, 2 if the call was invalid or refused, 3 if the server can't be reached.
 */
public final class Evaluate {
    private static final List<String> FLAGS = List.of("--harness", "--model", "--tasks", "--num-gpus", "--patience");

    private final ManagedChannel channel;
    private final EvaluationServiceBlockingStub server;
    private final Backoff backoff;
    private JobInfo job;
    /** All changes up to this one are printed. */
    private long revision;

    private Evaluate(ManagedChannel channel, Duration patience) {
        this.channel = channel;
        this.server = EvaluationServiceGrpc.newBlockingStub(channel);
        this.backoff = new Backoff(patience);
    }

    public static void main(String[] arguments) throws InterruptedException {
        System.exit(run(arguments));
    }

    private static int run(String[] arguments) throws InterruptedException {
        SubmitJobRequest submission;
        Duration patience;
        ManagedChannel channel;
        try {
            var flags = parseFlags(arguments);
            submission = submission(flags);
            patience = Duration.ofMillis((long) (1000 * Double.parseDouble(flags.getOrDefault("--patience", "60"))));
            channel = connect(System.getenv().getOrDefault("EVALRPC_ADDRESS", "127.0.0.1:50051"));
        } catch (IllegalArgumentException | UnsupportedOperationException | IOException error) {
            System.err.println("evaluate: " + error.getMessage());
            return 2;
        }
        try {
            var job = new Evaluate(channel, patience).evaluate(submission);
            printOutcome(job);
            return job.getStatus() == JobStatus.JOB_STATUS_COMPLETED ? 0 : 1;
        } catch (StatusRuntimeException error) {
            System.err.printf("evaluate: %s: %s%n", reasonOf(error).orElse("no server"), error.getStatus().getDescription());
            return isFinal(error) ? 2 : 3;
        } finally {
            channel.shutdownNow();
        }
    }

    private static ManagedChannel connect(String address) throws IOException {
        var channel = address.startsWith("https://")
                ? tlsChannel(address.substring("https://".length()))
                : Grpc.newChannelBuilder(address, InsecureChannelCredentials.create());
        // Pings detect a server that vanished silently.
        return channel.keepAliveTime(30, TimeUnit.SECONDS).build();
    }

    private static ManagedChannelBuilder<?> tlsChannel(String target) throws IOException {
        var credentials = TlsChannelCredentials.newBuilder();
        var ca = System.getenv("EVALRPC_TLS_CA");
        if (ca != null) {
            credentials.trustManager(new File(ca));
        }
        var channel = Grpc.newChannelBuilder(target, credentials.build());
        var token = System.getenv("EVALRPC_TOKEN");
        if (token == null) {
            return channel;
        }
        var metadata = new Metadata();
        metadata.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
        return channel.intercept(MetadataUtils.newAttachHeadersInterceptor(metadata));
    }

    private static Map<String, String> parseFlags(String[] arguments) {
        var flags = new HashMap<String, String>();
        for (int i = 0; i < arguments.length; i += 2) {
            if (!FLAGS.contains(arguments[i]) || i + 1 == arguments.length) {
                throw new IllegalArgumentException(arguments[i] + " is no flag with a value; there are: " + FLAGS);
            }
            flags.put(arguments[i], arguments[i + 1]);
        }
        return flags;
    }

    private static SubmitJobRequest submission(Map<String, String> flags) {
        var request = EvaluateRequest.newBuilder()
                .setHarness(flags.getOrDefault("--harness", ""))
                .setModel(flags.getOrDefault("--model", ""))
                .addAllTasks(List.of(flags.getOrDefault("--tasks", "").split(",")));
        if (flags.containsKey("--num-gpus")) {
            request.setNumGpus(Integer.parseInt(flags.get("--num-gpus")));
        }
        // The id makes it safe to resubmit if the response is lost.
        return SubmitJobRequest.newBuilder().setRequest(request).setRequestId(UUID.randomUUID().toString()).build();
    }

    /** Returns the finished job. */
    private JobInfo evaluate(SubmitJobRequest submission) throws InterruptedException {
        while (true) {
            try {
                if (job == null) {
                    submit(submission);
                }
                return watch();
            } catch (StatusRuntimeException error) {
                if (isFinal(error)) {
                    throw error;
                }
                backoff.await(error);
                // Reconnects now; by default gRPC waits up to two minutes.
                channel.resetConnectBackoff();
            }
        }
    }

    private void submit(SubmitJobRequest submission) {
        job = server.submitJob(submission);
        revision = job.getRevision();
        System.err.println("job " + job.getJobId());
        printStatus(job);
    }

    private JobInfo watch() {
        var request = WatchJobRequest.newBuilder().setJobId(job.getJobId()).setAfterRevision(revision).build();
        var events = server.watchJob(request);
        while (true) {
            var event = events.next(); // without an error, the stream never ends before the terminal event
            backoff.reset();
            if (event.getJob().getRevision() > revision) {
                printStatus(event.getJob());
            }
            revision = event.getRevision();
            if (event.getTerminal()) {
                return event.getJob();
            }
        }
    }

    /** Returns the server's own reason. Empty: something between here and the server failed. */
    private static Optional<String> reasonOf(StatusRuntimeException error) {
        return detailOf(error, ErrorInfo.class).filter(info -> info.getDomain().equals("evalrpc")).map(ErrorInfo::getReason);
    }

    /** Whether the server itself refused the call for good; whatever else ends a call is worth another try. */
    private static boolean isFinal(StatusRuntimeException error) {
        return reasonOf(error).isPresent() && error.getStatus().getCode() != Status.Code.UNAVAILABLE;
    }

    private static long retryDelayMillis(StatusRuntimeException error) {
        var delay = detailOf(error, RetryInfo.class).orElse(RetryInfo.getDefaultInstance()).getRetryDelay();
        return delay.getSeconds() * 1000 + delay.getNanos() / 1_000_000;
    }

    /** Returns the first detail of this kind that came with the error. */
    private static <T extends Message> Optional<T> detailOf(StatusRuntimeException error, Class<T> kind) {
        for (var detail : StatusProto.fromThrowable(error).getDetailsList()) {
            if (detail.is(kind)) {
                try {
                    return Optional.of(detail.unpack(kind));
                } catch (InvalidProtocolBufferException damaged) {
                    return Optional.empty();
                }
            }
        }
        return Optional.empty();
    }

    private static void printStatus(JobInfo job) {
        System.out.println(job.getRevision() + " " + statusName(job));
    }

    private static void printOutcome(JobInfo job) {
        if (job.hasError()) {
            System.err.printf(
                    "evaluate: %s %s: %s%n", statusName(job), job.getError().getReason(), job.getError().getMessage());
        }
        for (var result : job.getResultsMap().values()) {
            for (var metric : result.getMetricsList()) {
                var name = metric.getFilter().isEmpty() ? metric.getMetric() : metric.getMetric() + "," + metric.getFilter();
                var standardError = metric.hasStandardError() ? number(metric.getStandardError()) : "-";
                System.out.println(String.join(" ", metric.getTask(), name, number(metric.getValue()), standardError));
            }
        }
    }

    /** A status that this program does not know yet is shown by its number. */
    private static String statusName(JobInfo job) {
        var known = job.getStatus() != JobStatus.UNRECOGNIZED;
        return known ? job.getStatus().name().replace("JOB_STATUS_", "") : String.valueOf(job.getStatusValue());
    }

    private static String number(double value) {
        return String.format(Locale.ROOT, "%.4f", value);
    }

    /** Exponential backoff with full jitter, until `patience` has passed without a success. */
    private static final class Backoff {
        private static final long FIRST_MILLIS = 100;
        private static final long LONGEST_MILLIS = 5000;

        private final Duration patience;
        private long boundMillis;
        private Instant deadline;

        Backoff(Duration patience) {
            this.patience = patience;
            reset();
        }

        void reset() {
            boundMillis = FIRST_MILLIS;
            deadline = null;
        }

        /** Waits for at least as long as the server asks for. Throws the error once `patience` is used up. */
        void await(StatusRuntimeException error) throws InterruptedException {
            if (deadline == null) {
                deadline = Instant.now().plus(patience);
                System.err.println("evaluate: trying again: " + error.getStatus().getDescription());
            }
            if (Instant.now().isAfter(deadline)) {
                throw error;
            }
            Thread.sleep(retryDelayMillis(error) + ThreadLocalRandom.current().nextLong(boundMillis + 1));
            boundMillis = Math.min(2 * boundMillis, LONGEST_MILLIS);
        }
    }
}
