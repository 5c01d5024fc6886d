"""How each number is defined: said once, for both forms of the report."""

from pipeline.params import LatencyParams


def definitions(timing: LatencyParams, threads: int) -> tuple[str, ...]:
    """Return one definition an item; those of served figures stand beside their tables (served.py)."""
    return (
        "In brackets: the 95 % interval that the choice of text leaves open. Clusters are documents (windows, where "
        "there is one document); means by the cluster-robust variance and Student's t, quantiles by a bootstrap over "
        "clusters, shares of answers and of identical continuations by Wilson.",
        "perplexity = exp(sum of -ln p(token) / tokens), on the same token ids for every runtime. perplexity vs "
        "reference = perplexity / the reference's - 1, paired token by token. ln ratio = ln(perplexity / the "
        "reference's). bits/byte = sum of -log2 p(token) / bytes of the text in UTF-8.",
        "KLD = sum over the whole vocabulary of p(reference) x ln(p(reference) / p(artifact)), of the next-token "
        "distributions; a mean and quantiles over tokens. top-1 agreement: share of tokens for which both find the "
        "same token likeliest. Δp = p(artifact) - p(reference) of the token that follows; RMS Δp = its root mean "
        "square.",
        "greedy: continuations of beginnings of evaluation windows, compared with the reference's: tokens in common "
        "before the first difference, and the share of continuations that do not differ.",
        "chat template: share of test conversations that the artifact's own runtime renders to the checkpoint's ids.",
        "size: bytes of all files of the artifact. bits/weight = bits of the stored tensors / their parameters.",
        f"speed in process: one stream, {threads} threads, {timing.prompt_tokens} prompt and "
        f"{timing.output_tokens} output tokens, greedy, end-of-sequence ignored; medians of {timing.repeats} repeats "
        f"after {timing.warmup} warm-up. TTFT = first token - prompt handed over. prefill = prompt tokens / TTFT. "
        "decode = tokens after the first / their time.",
        "peak memory: the process's largest resident set in scoring or timing, interpreter and libraries included. "
        "peak GPU memory: the most that was in use on all GPUs together.",
    )
