"""The paths of lmms-eval's own server (0.7.3), for its clients: `EvalClient` and `AsyncEvalClient` of `lmms_eval.entrypoints`.

Its answers, errors and redirects are imitated, down to what its web framework makes of a request that it can't read.
"""
