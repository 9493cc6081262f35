"""What a person reads when an endpoint gives no answer: the cause, and the remedy."""

from __future__ import annotations

import errno
import ssl

import aiohttp
from aiohttp.http import HttpProcessingError

from lsp_server.engines.interface import EngineUnavailable

NO_ANSWER = (aiohttp.ClientError, OSError, TimeoutError, ValueError)  # from aiohttp
BAD_ANSWER = HttpProcessingError  # an endless line
LOOK = "Look at the log of that server."
URL = "Correct fimls.remote.url."
NETWORK = "Look after the network, or correct fimls.remote.url."
PROXY = "Correct fimls.remote.proxy, or HTTPS_PROXY and NO_PROXY."
OTHER_NAME = (62, 64)  # what OpenSSL says of a certificate for another host or address
EXPIRED = 10

REMEDIES = {
    401: "Put its key into the variable that fimls.remote.apiKeyEnv names (FIMLS_API_KEY).",
    403: "Put its key into the variable that fimls.remote.apiKeyEnv names (FIMLS_API_KEY).",
    404: "Correct fimls.remote.url or fimls.remote.model.",
    407: PROXY,
    429: "It is busy or starting: wait a little.",
    503: "It is busy or starting: wait a little.",
}


def refusal(name: str, status: int, words: str) -> EngineUnavailable:
    """name: of the endpoint, or its address. words: the endpoint's own."""
    remedy = REMEDIES.get(status)
    if remedy is None:
        remedy = LOOK
        if 400 <= status < 500:
            remedy = "Correct fimls.remote.model or fimls.remote.format."
    return EngineUnavailable(f"{name} answered with status {status}", quoted=words, remedy=remedy)


def other_dialect(name: str) -> EngineUnavailable:
    message = f"{name} does not speak OpenAI's completions dialect"
    return EngineUnavailable(message, remedy=URL, tell_after=2)


def broken_off(name: str) -> EngineUnavailable:
    return EngineUnavailable(f"The answer from {name} broke off", remedy=LOOK, tell_after=2)


def too_slow(name: str, seconds: float | None, setting: str) -> EngineUnavailable:
    """setting: that limits the time."""
    message = f"No answer from {name} within {seconds:g} s" if seconds else "No answer in time"
    return EngineUnavailable(message, remedy=f"If it is only slow, raise fimls.{setting}.")


def no_answer(name: str, error: Exception, timeout_s: float | None) -> EngineUnavailable:
    """error: of NO_ANSWER or BAD_ANSWER."""
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ServerTimeoutError):
        return too_slow(name, timeout_s, "remote.timeout")
    if isinstance(error, aiohttp.ClientPayloadError):
        return broken_off(name)
    if isinstance(error, BAD_ANSWER) and not isinstance(error, aiohttp.ClientError):
        return other_dialect(name)
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        return EngineUnavailable(
            f"No answer from {name}: the proxy {_of_proxy(error)}", remedy=PROXY
        )
    cause, remedy = _cause(error)
    return EngineUnavailable(f"No answer from {name}: {cause}", remedy=remedy)


def _of_proxy(error: aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError) -> str:
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"at {error.host}:{error.port} cannot be reached"
    if error.status == 407:
        return "wants a user name and a password"
    return f"refuses it with status {error.status}"


def _cause(error: Exception) -> tuple[str, str]:
    """The cause and the remedy."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return _of_certificate(error.certificate_error)
        case aiohttp.ClientConnectorSSLError():
            return "it does not speak TLS", "Correct fimls.remote.url: is it http://?"
        case aiohttp.ClientConnectorDNSError():
            return "there is no such name", NETWORK
        case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ECONNREFUSED:
            return "nobody listens there", "Start the server, or correct fimls.remote.url."
        case aiohttp.ServerTimeoutError() | aiohttp.ClientConnectorError():
            return "no connection comes about", NETWORK
        case aiohttp.ServerDisconnectedError() | ConnectionError():
            return "it closes the connection", LOOK
        case aiohttp.ClientResponseError():
            return "it does not speak HTTP", URL
    return type(error).__name__, URL


def _of_certificate(error: BaseException) -> tuple[str, str]:
    code = 0
    words = "it fails the check"
    if isinstance(error, ssl.SSLCertVerificationError):
        code = error.verify_code
        words = error.verify_message
    if code in OTHER_NAME:
        return "its certificate is for another name", URL
    if code == EXPIRED:
        return "its certificate has expired", "Have it renewed there."
    return (
        f"its certificate is not trusted ({words})",
        "Name the PEM file of its authority in fimls.remote.caFile.",
    )
