#include "proxy.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>

namespace testing {

namespace {

constexpr int look_milliseconds = 20;

sockaddr_in loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/// End a connection at once, with a reset: what is on its way is lost.
void cut(int socket) {
    const linger now{1, 0};
    setsockopt(socket, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(socket);
}

bool send_all(int socket, const char* data, std::size_t size) {
    while (size > 0) {
        const ssize_t sent = send(socket, data, size, MSG_NOSIGNAL);
        if (sent <= 0) return false;
        data += sent;
        size -= static_cast<std::size_t>(sent);
    }
    return true;
}

}  // namespace

Proxy::Proxy(const std::string& target, std::uint32_t seed, double bytes_mean)
    : target_port_(std::stoi(target.substr(target.rfind(':') + 1))), bytes_mean_(bytes_mean), random_(seed) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener_, 64) != 0) {
        throw std::runtime_error("the proxy cannot listen");
    }
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    address_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    acceptor_ = std::thread([this] { accept_all(); });
}

Proxy::~Proxy() {
    over_ = true;
    acceptor_.join();
    close(listener_);
    for (std::thread& link : links_) link.join();
}

void Proxy::accept_all() {
    while (!over_) {
        pollfd waiting{listener_, POLLIN, 0};
        if (poll(&waiting, 1, look_milliseconds) <= 0) continue;
        const int near = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
        if (near < 0) continue;
        const double budget = bytes_mean_ > 0 ? std::exponential_distribution<double>(1 / bytes_mean_)(random_)
                                              : std::numeric_limits<double>::infinity();
        const std::uint64_t number = connections_++;
        links_.emplace_back([this, near, number, budget] { forward(near, number, budget); });
    }
}

void Proxy::forward(int near, std::uint64_t number, double budget) {
    const int far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = loopback(target_port_);
    bool open = connect(far, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    std::array<char, 16384> data{};
    while (open && !over_) {
        std::array<pollfd, 2> ends = {{{near, POLLIN, 0}, {far, POLLIN, 0}}};
        if (poll(ends.data(), ends.size(), look_milliseconds) <= 0) continue;
        for (std::size_t side = 0; side < 2 && open; ++side) {
            if (!ends[side].revents) continue;
            if (number < muted_before_) {
                poll(nullptr, 0, look_milliseconds);
                continue;
            }
            const ssize_t got = recv(ends[side].fd, data.data(), data.size(), 0);
            const double size = std::min(static_cast<double>(std::max<ssize_t>(got, 0)), budget);
            open = got > 0 && send_all(ends[1 - side].fd, data.data(), static_cast<std::size_t>(size));
            budget -= size;
            if (budget < 1) {
                ++cuts_;
                open = false;
            }
        }
    }
    cut(near);
    cut(far);
}

}  // namespace testing
