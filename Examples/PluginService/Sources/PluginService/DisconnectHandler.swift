import NIOCore

/// Tells when a connection's client has gone, while its request is still being answered.
///
/// A connection serves its requests one after the other, so there is one listener at a time. Used on the connection's
/// event loop only.
final class DisconnectHandler: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = Any

    private var listener: (@Sendable () -> Void)?
    private var isDisconnected = false

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if case .some(.inputClosed) = event as? ChannelEvent { disconnect() }
        context.fireUserInboundEventTriggered(event)
    }

    func channelInactive(context: ChannelHandlerContext) {
        disconnect()
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        disconnect()
        context.fireErrorCaught(error)
    }

    private func disconnect() {
        isDisconnected = true
        listener?()
        listener = nil
    }

    /// Calls a closure when the client goes, at once if it has gone.
    func listen(_ listener: @escaping @Sendable () -> Void) {
        if isDisconnected { listener() } else { self.listener = listener }
    }
}

/// Does some work for a client, in a task that is cancelled when the client goes.
func withCancellationOnDisconnect<Result: Sendable>(
    of channel: any Channel,
    _ work: @escaping @Sendable () async throws -> Result
) async throws -> Result {
    let task = Task { try await work() }
    channel.eventLoop.execute {
        let handler = try? channel.pipeline.syncOperations.handler(type: DisconnectHandler.self)
        handler?.listen { task.cancel() }
    }
    return try await withTaskCancellationHandler {
        try await task.value
    } onCancel: {
        task.cancel()
    }
}
