"""The inference service: the Open Inference Protocol over ONNX Runtime.

How one ModelInfer travels, and where to read about each step:

1. `modelrail_server.rpc.dispatcher`: identity, policy and request id, before the message is read.
2. `protocol.servicer` hands the bytes to `protocol.wire`, which makes an `InferenceRequest` of them
   (`request.message`).
3. `dataplane.DataPlane.infer`: the boundary. What is to the right of it knows no gRPC.
4. `repository.repository` finds the version that answers, `request.check` compares the request with
   its signature, and a `request.feed.Feed` comes out.
5. `scheduling.scheduler` leaves a request of a quick model (`on_loop.quickness`) to
   `scheduling.on_loop.loop_runs`, which runs it at once and goes on with step 7, or on a saturated
   event loop has it wait a moment for others (`on_loop.gathering`) and goes on with step 6.
   Otherwise `scheduling.admission` lets it in or refuses it at once, and it waits in its model's
   `scheduling.queue.request_queue` until a thread is free and it is the model's turn.
6. `scheduling.batch` runs it together with others: `request.assembly` puts the inputs into one
   array, `runtime.session` calls ONNX Runtime, `request.assembly` takes the outputs apart again,
   `request.encode` makes bytes of them.
7. Back on the event loop the outcome wakes `DataPlane.infer`, which counts it (`statistics`), and
   `protocol.wire` writes the reply.

How a model gets there: a source (`sources`) knows its files, `repository` loads them beside what
serves and switches in one step, `runtime.loader` turns a file into a loaded, warmed-up model
(`model.definition`).
"""

import modelrail_server  # noqa: F401 - what it sets must be set before gRPC is imported
