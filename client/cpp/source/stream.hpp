/// A call, opened and driven by the calling thread: no other thread of ours is needed to wait with a limit.
#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <optional>

namespace stepwell {

/// One call of any kind: on the wire calls with one request or one response look like streams. Not for several threads
/// at once. Destroying it ends the call.
class Stream {
public:
    /// method: its path, /package.Service/Method. Sends nothing yet.
    Stream(std::shared_ptr<grpc::Channel> channel, const char* method);
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    /// Send a message; true once it is on its way, false if instead a response, or the end, wants to be received. So a
    /// long upload hears an early answer. Throws Break when nothing moves for so many seconds.
    bool send(const google::protobuf::MessageLite& message, double seconds);
    /// Say that no more messages will be sent.
    void finish(double seconds);
    /// Take the next response; false at the end. Throws Break after so many seconds, and when the call has failed.
    bool receive(google::protobuf::MessageLite& message, double seconds);
    /// End the call at once, without waiting.
    void cancel() { context_.TryCancel(); }

    const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

private:
    /// Wait for one event and note it; throws Break after the limit.
    void pump(gpr_timespec limit);
    void begin_reading();
    void note(void* tag, bool success);

    std::shared_ptr<grpc::Channel> channel_;
    grpc::ClientContext context_;
    grpc::CompletionQueue queue_;
    std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
    grpc::ByteBuffer incoming_;
    std::optional<grpc::ByteBuffer> inbox_;
    grpc::Status status_;
    bool started_ = false;
    bool writing_ = false;
    /// A write failed: the call's status is on its way.
    bool broken_ = false;
    bool finished_ = false;
    bool ended_ = false;
};

}  // namespace stepwell
