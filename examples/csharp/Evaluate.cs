// Submits an evaluation, watches it to its end across broken connections, and prints its metrics.
//
//   dotnet run -- [--harness H] --model M --tasks A,B [--num-gpus N] [--patience SECONDS]
//
// EVALRPC_ADDRESS sets the server: HOST:PORT, or https://HOST:PORT for TLS. EVALRPC_TLS_CA is a file with the certificates to
// trust, EVALRPC_TOKEN a token, which is sent with TLS only. Exits with 0 if the job completed, 1 if it failed or was
// cancelled, 2 if the call was invalid or refused, 3 if the server can't be reached.

using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using Evalrpc.V1;
using Google.Rpc;
using Grpc.Core;
using Grpc.Net.Client;

internal static class Program
{
    private static async Task<int> Main(string[] arguments)
    {
        EvaluateRequest request;
        TimeSpan patience;
        GrpcChannel connected;
        try
        {
            (request, patience) = ParseFlags(arguments);
            connected = Connect();
        }
        catch (Exception error) when (
            error is ArgumentException or FormatException or OverflowException or IOException or CryptographicException)
        {
            Console.Error.WriteLine($"evaluate: {error.Message}");
            return 2;
        }
        // The id makes it safe to resubmit if the response is lost.
        var submission = new SubmitJobRequest { Request = request, RequestId = Guid.NewGuid().ToString() };
        using var channel = connected;
        try
        {
            var watcher = new Watcher(new EvaluationService.EvaluationServiceClient(channel), patience);
            var job = await watcher.EvaluateAsync(submission);
            Output.PrintOutcome(job);
            return job.Status == JobStatus.Completed ? 0 : 1;
        }
        catch (RpcException error)
        {
            Console.Error.WriteLine($"evaluate: {Failures.ReasonOf(error) ?? "no server"}: {error.Status.Detail}");
            return Failures.IsFinal(error) ? 2 : 3;
        }
    }

    private static (EvaluateRequest Request, TimeSpan Patience) ParseFlags(string[] arguments)
    {
        var request = new EvaluateRequest();
        var patience = TimeSpan.FromSeconds(60);
        for (var i = 0; i < arguments.Length; i += 2)
        {
            if (i + 1 == arguments.Length)
            {
                throw new ArgumentException($"{arguments[i]} needs a value");
            }
            var value = arguments[i + 1];
            switch (arguments[i])
            {
                case "--harness": request.Harness = value; break;
                case "--model": request.Model = value; break;
                case "--tasks": request.Tasks.AddRange(value.Split(',')); break;
                case "--num-gpus": request.NumGpus = int.Parse(value); break;
                case "--patience": patience = TimeSpan.FromSeconds(double.Parse(value)); break;
                default: throw new ArgumentException($"there is no flag {arguments[i]}");
            }
        }
        return (request, patience);
    }

    private static GrpcChannel Connect()
    {
        var address = Environment.GetEnvironmentVariable("EVALRPC_ADDRESS") ?? "127.0.0.1:50051";
        var usesTls = address.StartsWith("https://");
        // Pings detect a server that vanished silently.
        var handler = new SocketsHttpHandler { KeepAlivePingDelay = TimeSpan.FromSeconds(30) };
        if (Environment.GetEnvironmentVariable("EVALRPC_TLS_CA") is { } ca)
        {
            handler.SslOptions.CertificateChainPolicy = TrustOnly(ca);
        }
        return GrpcChannel.ForAddress(usesTls ? address : $"http://{address}", new GrpcChannelOptions
        {
            Credentials = usesTls ? TlsCredentials() : ChannelCredentials.Insecure,
            HttpHandler = handler,
            DisposeHttpClient = true,
            // By default gRPC waits up to two minutes before it reconnects to a restarted server.
            InitialReconnectBackoff = Backoff.First,
            MaxReconnectBackoff = Backoff.Longest,
        });
    }

    private static ChannelCredentials TlsCredentials()
    {
        if (Environment.GetEnvironmentVariable("EVALRPC_TOKEN") is not { } token)
        {
            return ChannelCredentials.SecureSsl;
        }
        var bearer = CallCredentials.FromInterceptor((_, metadata) =>
        {
            metadata.Add("authorization", $"Bearer {token}");
            return Task.CompletedTask;
        });
        return ChannelCredentials.Create(ChannelCredentials.SecureSsl, bearer);
    }

    private static X509ChainPolicy TrustOnly(string ca)
    {
        var policy = new X509ChainPolicy
        {
            TrustMode = X509ChainTrustMode.CustomRootTrust,
            RevocationMode = X509RevocationMode.NoCheck,
        };
        policy.CustomTrustStore.ImportFromPemFile(ca);
        return policy;
    }
}

/// <summary>Follows one job and tracks the last revision seen.</summary>
internal sealed class Watcher(EvaluationService.EvaluationServiceClient server, TimeSpan patience)
{
    private readonly Backoff backoff = new(patience);
    private string? jobId;
    private long revision; // all changes up to here are printed

    /// <summary>Returns the finished job.</summary>
    public async Task<JobInfo> EvaluateAsync(SubmitJobRequest submission)
    {
        while (true)
        {
            try
            {
                if (jobId is null)
                {
                    await SubmitAsync(submission);
                }
                if (await WatchAsync() is { } job)
                {
                    return job;
                }
            }
            catch (RpcException error) when (!Failures.IsFinal(error))
            {
                await backoff.WaitAsync(error);
            }
        }
    }

    private async Task SubmitAsync(SubmitJobRequest submission)
    {
        var job = await server.SubmitJobAsync(submission);
        Console.Error.WriteLine($"job {job.JobId}");
        (jobId, revision) = (job.JobId, job.Revision);
        Output.PrintStatus(job);
    }

    /// <summary>Returns the finished job; null if the stream ended before.</summary>
    private async Task<JobInfo?> WatchAsync()
    {
        using var call = server.WatchJob(new WatchJobRequest { JobId = jobId, AfterRevision = revision });
        await foreach (var change in call.ResponseStream.ReadAllAsync())
        {
            backoff.Reset();
            if (change.Job?.Revision > revision)
            {
                Output.PrintStatus(change.Job);
            }
            revision = change.Revision;
            if (change.Terminal)
            {
                return change.Job;
            }
        }
        return null;
    }
}

/// <summary>Exponential backoff with full jitter, until <c>patience</c> has passed without a success.</summary>
internal sealed class Backoff(TimeSpan patience)
{
    public static readonly TimeSpan First = TimeSpan.FromMilliseconds(100);
    public static readonly TimeSpan Longest = TimeSpan.FromSeconds(5);

    private TimeSpan bound = First;
    private DateTime? deadline;

    public void Reset()
    {
        bound = First;
        deadline = null;
    }

    /// <summary>Waits for at least as long as the server asks for. Throws the error once <c>patience</c> is used up.</summary>
    public async Task WaitAsync(RpcException error)
    {
        if (deadline is null)
        {
            deadline = DateTime.UtcNow + patience;
            Console.Error.WriteLine($"evaluate: trying again: {error.Status.Detail}");
        }
        if (DateTime.UtcNow >= deadline)
        {
            throw error;
        }
        await Task.Delay(Failures.RetryDelay(error) + Random.Shared.NextDouble() * bound);
        bound = bound * 2 < Longest ? bound * 2 : Longest;
    }
}

internal static class Failures
{
    /// <summary>Returns the server's own reason. Null: something between here and the server failed.</summary>
    public static string? ReasonOf(RpcException error)
    {
        var info = error.GetRpcStatus()?.GetDetail<ErrorInfo>();
        return info?.Domain == "evalrpc" ? info.Reason : null;
    }

    /// <summary>Whether the server itself refused the call for good; whatever else ends a call is worth another try.</summary>
    public static bool IsFinal(RpcException error)
    {
        return ReasonOf(error) is not null && error.StatusCode != StatusCode.Unavailable;
    }

    public static TimeSpan RetryDelay(RpcException error)
    {
        return error.GetRpcStatus()?.GetDetail<RetryInfo>()?.RetryDelay?.ToTimeSpan() ?? TimeSpan.Zero;
    }
}

internal static class Output
{
    public static void PrintStatus(JobInfo job)
    {
        Console.WriteLine($"{job.Revision} {StatusName(job)}");
    }

    public static void PrintOutcome(JobInfo job)
    {
        if (job.Error is not null)
        {
            Console.Error.WriteLine($"evaluate: {StatusName(job)} {job.Error.Reason}: {job.Error.Message}");
        }
        foreach (var metric in job.Results.Values.SelectMany(result => result.Metrics))
        {
            var name = metric.Filter == "" ? metric.Metric_ : $"{metric.Metric_},{metric.Filter}";
            var standardError = metric.HasStandardError ? $"{metric.StandardError:F4}" : "-";
            Console.WriteLine($"{metric.Task} {name} {metric.Value:F4} {standardError}");
        }
    }

    /// <summary>A status that this program does not know yet is shown by its number.</summary>
    private static string StatusName(JobInfo job)
    {
        return job.Status.ToString().ToUpperInvariant();
    }
}
