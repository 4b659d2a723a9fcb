#include "connection.hpp"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <unistd.h>

#include "failures.hpp"

namespace stepwell {

namespace {

constexpr int received_message_bytes_max = 4 << 20;

std::shared_ptr<grpc::Channel> make_channel(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetInt("grpc.enable_retries", 0);     // the library repeats calls itself, with the update's identity
    arguments.SetInt("grpc.enable_http_proxy", 0);  // http_proxy is for the web; gRPC would take it for loopback, too
    arguments.SetInt("grpc.use_local_subchannel_pool", 1);  // else a new channel shares the dead connection of the old
    arguments.SetInt("grpc.initial_reconnect_backoff_ms", 100);
    arguments.SetInt("grpc.min_reconnect_backoff_ms", 100);
    arguments.SetInt("grpc.max_reconnect_backoff_ms", 1000);
    arguments.SetMaxReceiveMessageSize(received_message_bytes_max);
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

Connection::Connection(std::string address) : address_(std::move(address)), process_(getpid()) {}

Connection::~Connection() {
    if (forked()) new std::shared_ptr<grpc::Channel>(std::move(channel_));  // it cannot be ended here
}

void Connection::check_process() const {
    if (!forked()) return;
    fail(ErrorReason::invalid_value,
         "got a call in a forked process, expected one in the process that connected; connect after the fork");
}

std::shared_ptr<grpc::Channel> Connection::channel() {
    check_process();
    const std::lock_guard lock(mutex_);
    if (closed_) {
        fail(ErrorReason::invalid_value, "got a call on a closed client, expected an open one; connect again");
    }
    if (!channel_) channel_ = make_channel(address_);
    return channel_;
}

void Connection::drop(const std::shared_ptr<grpc::Channel>& channel) {
    const std::lock_guard lock(mutex_);
    if (channel_ == channel) channel_.reset();
}

void Connection::close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    channel_.reset();
}

bool Connection::forked() const { return process_ != getpid(); }

}  // namespace stepwell
