#include "stream.hpp"

#include <grpc/support/time.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <cmath>

#include "failures.hpp"

namespace stepwell {

namespace {

constexpr const char* contract_metadata = "stepwell-contract";
/// The version of the contract that this library was made for, MAJOR.MINOR.
constexpr const char* contract = "1.0";

// The tags of the call's operations, of which each is under way once at most.
int start_tag, write_tag, finish_writes_tag, read_tag, status_tag;

gpr_timespec in_seconds(double seconds) {
    const auto nanoseconds = static_cast<std::int64_t>(std::fmax(0.0, seconds) * 1e9);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(nanoseconds, GPR_TIMESPAN));
}

}  // namespace

Stream::Stream(std::shared_ptr<grpc::Channel> channel, const char* method) : channel_(std::move(channel)) {
    context_.AddMetadata(contract_metadata, contract);
    call_ = grpc::GenericStub(channel_).PrepareCall(&context_, method, &queue_);
    call_->StartCall(&start_tag);
}

Stream::~Stream() {
    context_.TryCancel();
    queue_.Shutdown();
    void* tag;
    bool success;
    while (queue_.Next(&tag, &success)) {
        // What was under way ends, one way or the other; the buffers have to live that long.
    }
}

bool Stream::send(const google::protobuf::MessageLite& message, double seconds) {
    const gpr_timespec limit = in_seconds(seconds);
    while (!inbox_ && !ended_) {
        if (started_ && !writing_ && !broken_) {
            grpc::ByteBuffer buffer;
            bool own;
            const grpc::Status status =
                grpc::GenericSerialize<grpc::ProtoBufferWriter, google::protobuf::MessageLite>(message, &buffer, &own);
            if (!status.ok()) throw Break::of(status);
            writing_ = true;
            call_->Write(buffer, &write_tag);
            return true;
        }
        pump(limit);
    }
    return false;
}

void Stream::finish(double seconds) {
    const gpr_timespec limit = in_seconds(seconds);
    while (!finished_ && !broken_ && !ended_) {
        if (started_ && !writing_) {
            finished_ = writing_ = true;
            call_->WritesDone(&finish_writes_tag);
            return;
        }
        pump(limit);
    }
}

bool Stream::receive(google::protobuf::MessageLite& message, double seconds) {
    const gpr_timespec limit = in_seconds(seconds);
    while (!inbox_) {
        if (ended_) {
            if (status_.ok()) return false;
            throw Break::of(status_);
        }
        pump(limit);
    }
    grpc::ByteBuffer buffer;
    buffer.Swap(&*inbox_);
    inbox_.reset();
    begin_reading();
    const grpc::Status status =
        grpc::GenericDeserialize<grpc::ProtoBufferReader, google::protobuf::MessageLite>(&buffer, &message);
    if (!status.ok()) throw Break::of(status);
    return true;
}

void Stream::begin_reading() { call_->Read(&incoming_, &read_tag); }

void Stream::pump(gpr_timespec limit) {
    void* tag;
    bool success;
    if (queue_.AsyncNext(&tag, &success, limit) != grpc::CompletionQueue::GOT_EVENT) throw Break::silence();
    note(tag, success);
}

void Stream::note(void* tag, bool success) {
    if (tag == &start_tag) {
        started_ = success;
        broken_ = !success;
        begin_reading();
    } else if (tag == &write_tag || tag == &finish_writes_tag) {
        writing_ = false;
        broken_ = broken_ || !success;
    } else if (tag == &read_tag) {
        if (success) {
            inbox_.emplace();
            inbox_->Swap(&incoming_);
        } else {
            call_->Finish(&status_, &status_tag);
        }
    } else if (tag == &status_tag) {
        ended_ = true;
    }
}

}  // namespace stepwell
