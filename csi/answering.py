"""How a method of csi/services.py is answered: by a coroutine, its failures as a gRPC code and one line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from csi.failures import FAILURES, grpc_status
from csi.services import Method, RequestT, ResponseT


def handler(
    method: Method[RequestT, ResponseT], answer: Callable[[RequestT], Awaitable[ResponseT]]
) -> grpc.GenericRpcHandler:
    """For a grpc.aio server: `answer`, its failures turned to a gRPC code and one line."""

    async def run(request: RequestT, context: grpc.aio.ServicerContext[RequestT, ResponseT]) -> ResponseT:
        # What ends in a fault of ours may have left something: kubelet takes this code as uncertain.
        context.set_code(grpc.StatusCode.UNAVAILABLE)
        try:
            response = await answer(request)
        except FAILURES as error:
            code, message = grpc_status(error)
        else:
            context.set_code(grpc.StatusCode.OK)
            return response
        return await context.abort(code, message)

    unary: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        run,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(method.service, {method.name: unary})
